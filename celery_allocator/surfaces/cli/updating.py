"""Commands of live updates: updates (apply, replies, parked, retry, discard), watch."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import click

from celery_allocator.errors import ActionRefused, ChangesMissed
from celery_allocator.model import iso_utc
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.ending import until_interrupted
from celery_allocator.updates import OBJECTS, Change, Intake, Listener, watch

#: Seconds for which `updates apply` has the duty without coming back, and for which one read waits.
_LEASE_S, _BLOCK_S = 10.0, 0.5
_parked_id = click.argument("parked_id", metavar="PARKED_ID")
_limit = click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")


@click.group()
def updates() -> None:
    """What other systems tell this pool to do, in the stream `…:updates`."""


@updates.command()
@click.option("--once", is_flag=True, help="Only what is there now.")
@json_option
@pass_console
def apply(console: Console, *, once: bool, as_json: bool) -> None:
    """Take updates here, as a worker does: where no worker runs, or allocator_updates is off.

    Without --once it goes on until it is interrupted, and listens to the channel, too. Prints each reply.
    """
    ledger = console.ledger
    holder = f"{socket.gethostname()}:{os.getpid()}"
    intake = Intake(console.settles, lambda held: held.take_duty("updates", holder, _LEASE_S))
    listener = Listener()
    seen = ledger.newest_reply()
    try:
        count = 1
        with until_interrupted():
            while count or not once:
                if not ledger.take_duty("updates", holder, _LEASE_S):
                    raise ActionRefused("a worker of this pool, or another command, takes updates already")
                if not once:
                    listener.step(ledger)
                count = intake.step(ledger, 0.0 if once else _BLOCK_S)
                for at, reply in ledger.replies(seen):
                    click.echo(json.dumps(reply) if as_json else _told(reply))
                    seen = at
    finally:
        listener.retire()
        ledger.give_up_duty("updates", holder)


@updates.command()
@click.option("--since", default="-", metavar="ID", help="Only what came after this entry of the stream of replies.")
@_limit
@json_option
@pass_console
def replies(console: Console, since: str, limit: int, *, as_json: bool) -> None:
    """What updates were answered, oldest first; with --json one object per line."""
    for at, reply in console.ledger.replies(since, limit):
        click.echo(json.dumps({"entry": at, **reply}) if as_json else _told(reply))


@updates.command()
@_limit
@json_option
@pass_console
def parked(console: Console, limit: int, *, as_json: bool) -> None:
    """Updates that could not be read, oldest first."""
    found = console.ledger.parked_updates(limit)
    if as_json:
        print_json({"parked": [{"parked_id": at, **row, "at": _when(row)} for at, row in found]})
    elif not found:
        click.echo("No update is parked.")
    else:
        rows = ((at, _when(row), row.get("error"), row.get("update", "")[:60]) for at, row in found)
        click.echo(text.table(("PARKED", "SINCE", "ERROR", "UPDATE"), rows))


@updates.command()
@_parked_id
@json_option
@pass_console
def retry(console: Console, parked_id: str, *, as_json: bool) -> None:
    """Have a parked update read once more."""
    sent = console.ledger.readmit(parked_id, retry=True)
    if as_json:
        print_json({"success": True, "update": sent})
    else:
        click.echo(f"{parked_id} is update {sent} now")


@updates.command()
@_parked_id
@json_option
@pass_console
def discard(console: Console, parked_id: str, *, as_json: bool) -> None:
    """Forget a parked update."""
    console.ledger.readmit(parked_id, retry=False)
    if as_json:
        print_json({"success": True})
    else:
        click.echo(f"{parked_id} is discarded")


@click.command("watch")
@click.option(
    "--since",
    default="$",
    show_default=True,
    metavar="POSITION",
    help="Only what came after this change; -: from the oldest that is kept; $: only new ones.",
)
@click.option("--object", "kinds", multiple=True, type=click.Choice(OBJECTS), help="Only of these kinds.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on until interrupted.")
@json_option
@pass_console
def watch_command(console: Console, since: str, kinds: tuple[str, ...], *, follow: bool, as_json: bool) -> None:
    """Print every change of the pool; with --json one object per line, in the form of an update.

    The idempotency_key of a change is its position, to go on from. Ends with an error where the stream of events no
    longer has all that came after --since.
    """
    with until_interrupted():
        for change in _changes(console, since, kinds, follow=follow):
            click.echo(json.dumps(change.as_dict(), ensure_ascii=False) if as_json else _line(change))


def _changes(console: Console, since: str, kinds: tuple[str, ...], *, follow: bool) -> Iterator[Change]:
    followed = watch(console.ledger, since, block_s=None if follow else 0.0, objects=kinds)
    try:
        yield from followed
    except ChangesMissed as error:
        click.echo(f"What is kept begins at {error.oldest}: --since - goes on from there.", err=True)
        raise


def _line(change: Change) -> str:
    fields = dict(change.fields)
    at, event = fields.pop("at", None), fields.pop("event", "")
    words = [iso_utc(at) or "-", f"{change.object}:{change.id}", change.op if change.op == "delete" else "", event]
    words += [f"{key}={_plain(value)}" for key, value in fields.items() if value not in (None, "")]
    return " ".join(word for word in [*words, f"by={change.actor}"] if word)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, bool)) else str(value)


def _told(reply: dict[str, Any]) -> str:
    about = reply.get("about") or {}
    what = f"{about['op']} {about['object']} {about['id']} by {about['actor']}" if about else "cannot be read"
    entries = ", ".join(str(entry) for entry in reply.get("entries", ()))
    words = [f"{reply.get('update')} {reply.get('status')}: {what}", f"entries {entries}" if entries else ""]
    return "; ".join(word for word in [*words, reply.get("reason", "")] if word)


def _when(row: dict[str, str]) -> str | None:
    return iso_utc(int(row["at"]) / 1000) if row.get("at", "").isdigit() else None


COMMANDS: tuple[click.Command, ...] = (updates, watch_command)
