"""Commands of the journal: journal, undo, redo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from celery_allocator.ledger import Entry
from celery_allocator.model import iso_utc
from celery_allocator.operations import Allocate, Cancel, Release, subject
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import completes, entries
from celery_allocator.surfaces.cli.console import EXIT_FAILED, Console, acting, json_option, pass_console, print_json

F = TypeVar("F", bound=Callable[..., Any])

#: Steps of a plan, and of what was done, that are shown; the rest is counted.
_SHOWN = 20


def _number(*states: str) -> Callable[[F], F]:
    """Add the number of an entry; a shell offers those in these states."""
    complete = completes(entries(*states))
    return click.argument("number", type=click.IntRange(1), required=False, metavar="[ENTRY]", shell_complete=complete)


_cascade = click.option("--cascade", is_flag=True, help="Also what stands in the way; shown first, and asked for.")
_batch = click.option("--batch", is_flag=True, help="Also those that it was taken together with, by filters.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only show what would be done.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@_number("done", "undone")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@click.option("--before", type=click.IntRange(1), metavar="ENTRY", help="Only older ones than this.")
@json_option
@pass_console
def journal(console: Console, number: int | None, limit: int, before: int | None, *, as_json: bool) -> None:
    """Who has done what, when and why, latest first; or one entry with all of it."""
    if number is not None:
        entry = console.ledger.entry(number)
        if as_json:
            print_json(_plain(entry))
        else:
            click.echo(text.pairs((key, _shown(value)) for key, value in _plain(entry).items()))
        return
    page = console.ledger.journal_page(limit, before)
    found = page.entries
    for damage in page.damage:
        click.echo(f"Error: {damage}", err=True)
    if as_json:
        print_json([_plain(entry) for entry in found])
    elif not found and not page.damage:
        click.echo("The journal is empty.")
    else:
        heads = ("ENTRY", "WHEN", "STATE", "ACTION", "ON", "BY", "FROM", "WHY")
        click.echo(text.table(heads, (_row(entry) for entry in found)))


@click.command()
@_number("done")
@_cascade
@_batch
@_dry_run
@_yes
@json_option
@acting
@pass_console
def undo(
    console: Console, number: int | None, *, cascade: bool, batch: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Undo an operator's action: the latest that is in force, or that of the journal's ENTRY.

    It is refused where later actions on the same depend on it; --cascade undoes those, too.
    """
    how = _How("undo", number, cascade, batch, yes, as_json)
    _again(console, how, dry_run=dry_run)


@click.command()
@_number("undone")
@_cascade
@_batch
@_dry_run
@_yes
@json_option
@acting
@pass_console
def redo(
    console: Console, number: int | None, *, cascade: bool, batch: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Redo what was undone: the last one, or the journal's ENTRY."""
    how = _How("redo", number, cascade, batch, yes, as_json)
    _again(console, how, dry_run=dry_run)


@dataclass(frozen=True)
class _How:
    way: str
    number: int | None
    cascade: bool
    batch: bool
    yes: bool
    as_json: bool


def _again(console: Console, how: _How, *, dry_run: bool) -> None:
    console.session.upkeep()
    plan = console.operator.plan(how.way, how.number, cascade=how.cascade, together=how.batch)
    if dry_run:
        if how.as_json:
            print_json({"success": True, "plan": [_plain(entry) for entry in plan.entries]})
        else:
            click.echo("\n".join(plan.lines()))
        return
    if len(plan.entries) > 1 and not how.yes:
        if how.as_json:
            which = "--cascade" if plan.others else "--batch"
            raise click.UsageError(f"{which} with --json cannot ask: add --yes, or --dry-run to see the plan")
        lines = plan.lines()
        more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        click.echo("\n".join([*lines[:_SHOWN], *more]), err=True)
        click.confirm(f"{how.way.capitalize()} these {len(plan.entries)}?", abort=True, err=True)
    _offer_again(console, plan.entries)
    agreed = None if how.yes else [entry.number for entry in plan.entries]
    (_together if how.batch else _one)(console, how, plan.entries[-1], agreed)


def _one(console: Console, how: _How, entry: Entry, agreed: list[int] | None) -> None:
    act = console.operator.undo if how.way == "undo" else console.operator.redo
    effects = act(entry.number, cascade=how.cascade, agreed=agreed)
    if how.as_json:
        print_json({"success": True, "done": [{"entry": effect.entry, "text": effect.text} for effect in effects]})
        return
    for effect in effects:
        click.echo(f"{how.way}ne {effect.entry}: {effect.text}")
    if entry.batch and (rest := _rest(console, how, entry)):
        others = f"{rest} others were" if rest > 1 else "another one was"
        click.echo(f"{others} taken together with it: {console.command} {how.way} {entry.number} --batch", err=True)


def _rest(console: Console, how: _How, one: Entry) -> int:
    """How many were taken together with an entry, and are not undone (redone) with it."""
    page = console.ledger.journal(console.ledger.options.journal_maxlen)
    state = "done" if how.way == "undo" else "undone"
    return sum(entry.batch == one.batch and entry.state == state for entry in page)


def _together(console: Console, how: _How, entry: Entry, agreed: list[int] | None) -> None:
    outcomes = list(console.operator.again_each(how.way, entry.number, cascade=how.cascade, agreed=agreed))
    refused = [one for one in outcomes if not one.done]
    effects = [one.effect for one in outcomes if one.effect is not None]
    if how.as_json:
        done = [{"entry": effect.entry, "text": effect.text} for effect in effects]
        not_done = [{"about": one.about, "error": one.error.as_dict()} for one in refused if one.error is not None]
        print_json({"success": not refused, "done": done, "refused": not_done})
    else:
        for effect in effects[:_SHOWN]:
            click.echo(f"{how.way}ne {effect.entry}: {effect.text}")
        if len(effects) > _SHOWN:
            click.echo(f"… and {len(effects) - _SHOWN} more")
        for one in refused[:_SHOWN]:
            click.echo(f"Error: {one.error}", err=True)
        if refused:
            click.echo(f"{len(effects)} of {len(outcomes)} {how.way}ne", err=True)
    if refused:
        click.get_current_context().exit(EXIT_FAILED)


def _offer_again(console: Console, entries: tuple[Entry, ...]) -> None:
    """This host was let go with the last allocation by hand that it had: one may come back, and needs it."""
    if any(entry.action in (Allocate.action, Release.action, Cancel.action) for entry in entries):
        here = console.session.node(console.session.inventory.node)
        if here is not None and here.state == "offline":
            console.session.offer_host(console.settings.ttl_s)


def _plain(entry: Entry) -> dict[str, Any]:
    """Its number under the name that it has in all other answers."""
    return {"entry": entry.number, **{key: value for key, value in entry.as_dict().items() if key != "number"}}


def _row(entry: Entry) -> tuple[Any, ...]:
    on = subject(entry) or "the pool"
    when = iso_utc(entry.at)
    return entry.number, when, entry.state, entry.action, on, entry.actor, entry.source, entry.reason


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return value


COMMANDS: tuple[click.Command, ...] = (journal, undo, redo)
