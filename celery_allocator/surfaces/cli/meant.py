"""Which allocations a command is about: an id, or filters over what has not been granted; and doing it to each."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from celery_allocator.errors import ActionRefused, LabelError
from celery_allocator.history.window import length
from celery_allocator.model import Allocation, State, iso_utc
from celery_allocator.operations import Command, Outcome, Selection, select
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import Complete, completes, task_names
from celery_allocator.surfaces.cli.console import EXIT_FAILED, Console, print_json
from celery_allocator.surfaces.cli.named import named

F = TypeVar("F", bound=Callable[..., Any])

#: Allocations that are shown, and refusals that are told; the rest is counted.
_SHOWN = 10
#: From how many actions on a terminal is shown how far they are.
_LONG = 100


@dataclass(frozen=True)
class Meant:
    """``which``: an id of an allocation or a task; or else ``selection``."""

    which: str | None
    selection: Selection | None
    dry_run: bool
    yes: bool
    beyond_journal: bool

    def only(self, **more: Any) -> Meant:
        """Of the filters' allocations only those that these fields of a :class:`Selection` mean, too."""
        return self if self.selection is None else replace(self, selection=replace(self.selection, **more))

    def found(self, console: Console) -> list[Allocation]:
        """The allocations. Raises :class:`AllocationNotFound` for an id that names none."""
        if self.selection is None:
            return list(named(console.ledger, self.which or ""))
        return list(select(console.ledger, self.selection))


def meant(complete: Complete, *states: State, before: str = "") -> Callable[[F], F]:
    """Add the argument WHICH and the filters; the command gets them as ``meant``.

    ``states``: what the command can be done to, some of which ``--state`` picks. ``complete``: the ids that a shell
    offers. ``before``: the argument that follows WHICH, and is optional for click: with filters it is the first.
    """
    words = [state.value for state in states]
    state = click.option("--state", type=click.Choice(words), multiple=True, help="All in this state; or in several.")
    options = (
        click.argument("which", metavar="[ALLOCATION_ID|TASK_ID]", required=False, shell_complete=complete),
        click.option(
            "--name", metavar="GLOB", help="All whose task's name is like this.", shell_complete=completes(task_names)
        ),
        click.option("--tenant", metavar="TENANT", help="All of this tenant.  ['': of none]"),
        *((state,) if len(words) > 1 else ()),
        click.option("--older-than", metavar="LENGTH", help="All submitted longer ago than 90s, 15m, 1h, 2d."),
        click.option("--shape", metavar="MB:CORES:RAM", help="All that ask for so much; * is any: 8192:*:*."),
        click.option("--all", "everything", is_flag=True, help="All."),
        click.option("--dry-run", is_flag=True, help="Only show which are meant."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--no-undo", is_flag=True, help="Also more than the journal remembers: not all can be undone."),
    )

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*args: Any, **given: Any) -> Any:
            names = ("name", "tenant", "older_than", "shape", "everything", "dry_run", "yes", "no_undo")
            mine = {name: given.pop(name) for name in names}
            chosen = tuple(State(word) for word in given.pop("state", ()))
            which = given.pop("which")
            if before and given[before] is None:
                which, given[before] = None, _moved_up(before, which)
            return command(*args, meant=_read(which, chosen, states, mine), **given)

        result: Any = wrapped
        for option in reversed(options):
            result = option(result)
        return result  # type: ignore[no-any-return]

    return decorate


def _moved_up(name: str, value: str | None) -> Any:
    """What click took for WHICH is the argument ``name``."""
    ctx = click.get_current_context()
    (argument,) = (parameter for parameter in ctx.command.params if parameter.name == name)
    if value is None:
        raise click.MissingParameter(ctx=ctx, param=argument)
    return argument.type_cast_value(ctx, value)


def _read(which: str | None, chosen: tuple[State, ...], states: tuple[State, ...], given: dict[str, Any]) -> Meant:
    filters = {name: given[name] for name in ("name", "tenant", "shape") if given[name] is not None}
    if given["older_than"] is not None:
        try:
            filters["older_than_s"] = length(given["older_than"]).total_seconds()
        except ValueError:
            rule = "must be a length of time such as 90s, 15m, 1h, 2d or 1w"
            raise LabelError("--older-than", given["older_than"], rule) from None
    some = bool(filters or chosen)
    if some + bool(which) + given["everything"] > 1:
        raise click.UsageError("give an id, or filters, or --all: one of the three")
    if not (some or which or given["everything"]):
        raise click.UsageError("which? Give the id of an allocation or a task, or filters (--name, …), or --all")
    selection = None if which else Selection(states=chosen or states, **filters)
    return Meant(which, selection, given["dry_run"], given["yes"], given["no_undo"])


def act_on(
    console: Console,
    meant: Meant,
    make: Callable[[Allocation], Command],
    *,
    verb: str,
    as_json: bool,
    backwards: bool = False,
) -> int:
    """Do what ``make`` gives to each that is meant, after a question where they are many; returns the exit code.

    ``verb``: for people. ``backwards``: the last in line first.
    """
    console.session.upkeep()
    found = meant.found(console)
    if meant.dry_run:
        _show(found, f"would {verb}", as_json=as_json)
        return 0
    commands = [make(allocation) for allocation in (reversed(found) if backwards else found)]
    try:
        outcomes = console.operator.run_each(commands, beyond_journal=meant.beyond_journal)
    except ActionRefused as error:
        raise ActionRefused(f"{error}. Let filters mean fewer, or add --no-undo") from None
    if meant.selection is not None and len(found) > 1 and not meant.yes:
        if as_json:
            told = f"{len(found)} are meant, and --json cannot ask: add --yes, or --dry-run to see them"
            raise click.UsageError(told)
        _show(found, verb, as_json=False, err=True)
        click.confirm(f"{verb.capitalize()} these {len(found)}?", abort=True, err=True)
    return _told(console, meant, _watched(outcomes, len(found), verb, as_json=as_json), verb, as_json=as_json)


def _watched(outcomes: Iterable[Outcome], count: int, verb: str, *, as_json: bool) -> list[Outcome]:
    done: list[Outcome] = []
    with ExitStack() as stack:
        if count >= _LONG and sys.stderr.isatty() and not as_json:
            outcomes = stack.enter_context(click.progressbar(outcomes, count, verb, file=sys.stderr))
        done.extend(outcomes)
    return done


def _told(console: Console, meant: Meant, outcomes: Sequence[Outcome], verb: str, *, as_json: bool) -> int:
    done, refused = [one for one in outcomes if one.done], [one for one in outcomes if not one.done]
    entries = [one.entry for one in done if one.entry is not None]
    if as_json:
        rows = [
            {
                "allocation_id": one.about,
                "done": one.done,
                **({"entry": one.entry} if one.error is None else {"error": one.error.as_dict()}),
            }
            for one in outcomes
        ]
        counts = {} if meant.selection is None else {"meant": len(outcomes), "done": len(done)}
        print_json({"success": not refused, **counts, "allocations": rows})
        return EXIT_FAILED if refused else 0
    for one in done if meant.selection is None or len(done) == 1 else ():
        assert one.effect is not None
        click.echo(one.effect.text)
    for one in refused[:_SHOWN]:
        click.echo(f"Error: {one.error}", err=True)
    if len(refused) > _SHOWN:
        click.echo(f"… and {len(refused) - _SHOWN} more were refused", err=True)
    if meant.selection is not None and len(outcomes) != 1:
        undo = f"; undo them all: {console.command} undo {max(entries)} --batch" if len(entries) > 1 else ""
        click.echo(f"{verb}: {len(done)} of {len(outcomes)} done{undo}" if outcomes else "Nothing is meant.")
    return EXIT_FAILED if refused else 0


def _show(found: Sequence[Allocation], what: str, *, as_json: bool, err: bool = False) -> None:
    if as_json:
        rows = [{**a.asked(), "state": a.state.value, "submitted_at": a.submitted_at} for a in found]
        print_json({"success": True, "meant": len(found), "allocations": rows})
        return
    heads = ("TASK", "NAME", "STATE", "TENANT", "ASKS FOR", "PRIORITY", "SUBMITTED", "ALLOCATION")
    rows_shown = (
        (
            a.task_id,
            a.task_name,
            a.state.value.replace("_", " "),
            a.requirements.tenant,
            text.shape(a.requirements),
            a.priority,
            iso_utc(a.submitted_at),
            a.allocation_id,
        )
        for a in found[:_SHOWN]
    )
    if found:
        click.echo(text.table(heads, rows_shown), err=err)
    if len(found) > _SHOWN:
        click.echo(f"… and {len(found) - _SHOWN} more", err=err)
    if not err:
        click.echo(f"{what}: {len(found)}")
