"""Commands on what waits: hold, unhold, priority, front, cancel; on one, or on all that filters mean."""

from __future__ import annotations

import click

from celery_allocator.errors import ActionRefused, AllocationNotFound
from celery_allocator.model import FIELDS, Allocation, Kind, State
from celery_allocator.operations import Cancel, Front, Hold, Priority, Unhold
from celery_allocator.surfaces.cli.completing import can_be_cancelled, completes, ids
from celery_allocator.surfaces.cli.console import (
    EXIT_FAILED,
    Console,
    acting,
    json_option,
    pass_console,
    print_json,
)
from celery_allocator.surfaces.cli.meant import Meant, act_on, meant
from celery_allocator.surfaces.cli.named import named

_BOUNDS = FIELDS["priority"]
_ANY = (State.WAITING, State.DELAYED, State.ON_HOLD)
_not_granted = completes(ids("queue", "delayed", "on_hold"))


@click.command()
@meant(completes(ids("queue", "delayed")), State.WAITING, State.DELAYED)
@json_option
@acting
@pass_console
@click.pass_context
def hold(ctx: click.Context, console: Console, meant: Meant, *, as_json: bool) -> None:
    """Put what waits or is delayed on hold: it keeps its place in line, and is not granted."""
    ctx.exit(act_on(console, meant, lambda a: Hold(a.allocation_id), verb="hold", as_json=as_json))


@click.command()
@meant(completes(ids("on_hold")), State.ON_HOLD)
@json_option
@acting
@pass_console
@click.pass_context
def unhold(ctx: click.Context, console: Console, meant: Meant, *, as_json: bool) -> None:
    """Let what is on hold go on. Filters leave what a circuit breaker has set aside."""
    mine = meant.only(on_hold_by="operator")
    ctx.exit(act_on(console, mine, lambda a: Unhold(a.allocation_id), verb="unhold", as_json=as_json))


# A negative number is no option.
@click.command(context_settings={"ignore_unknown_options": True})
@meant(_not_granted, *_ANY, before="value")
@click.argument("value", type=click.IntRange(_BOUNDS.minimum, _BOUNDS.maximum), metavar="PRIORITY", required=False)
@json_option
@acting
@pass_console
@click.pass_context
def priority(ctx: click.Context, console: Console, meant: Meant, value: int, *, as_json: bool) -> None:
    """Give what has not been granted another priority: larger starts first."""
    ctx.exit(act_on(console, meant, lambda a: Priority(a.allocation_id, value), verb="prioritise", as_json=as_json))


@click.command()
@meant(_not_granted, *_ANY)
@json_option
@acting
@pass_console
@click.pass_context
def front(ctx: click.Context, console: Console, meant: Meant, *, as_json: bool) -> None:
    """Move what has not been granted before the first in line. What comes later with a larger priority passes it.

    Several keep their order among each other.
    """
    verb = "move to the front"
    ctx.exit(act_on(console, meant, lambda a: Front(a.allocation_id), verb=verb, as_json=as_json, backwards=True))


@click.command()
@meant(completes(ids("queue", "delayed", "on_hold", "held", only=can_be_cancelled)), *_ANY)
@json_option
@acting
@pass_console
@click.pass_context
def cancel(ctx: click.Context, console: Console, meant: Meant, *, as_json: bool) -> None:
    """End what has not started, or was allocated by hand. Filters mean what has not been granted.

    A task that runs is left alone: `celery -A proj control terminate SIGTERM TASK_ID` ends it.
    """
    if meant.selection is None and not meant.dry_run:
        ctx.exit(_cancel(console, meant.which or "", as_json=as_json))
    ctx.exit(act_on(console, meant, _cancelling, verb="cancel", as_json=as_json))


def _cancelling(allocation: Allocation) -> Cancel:
    """Of many: what was granted since they were listed is left alone."""
    return Cancel(allocation.allocation_id, only_waiting=True)


def _cancel(console: Console, which: str, *, as_json: bool) -> int:
    rows = []
    for allocation in named(console.ledger, which):
        state, entry = allocation.state, None
        try:
            entry = console.operator.run(Cancel(allocation.allocation_id)).entry
            done = True
        except ActionRefused:
            done = False
            state = State.RUNNING if _lives(console, allocation) else State.RELEASED
        was = state.value if state is not State.RELEASED else "gone"
        rows.append({"allocation_id": allocation.allocation_id, "was": was, "cancelled": done, "entry": entry})
        if not as_json:
            click.echo(_told(console, allocation, state, done=done), err=not done)
    all_done = all(row["cancelled"] for row in rows)
    if as_json:
        print_json({"success": all_done, "allocations": rows})
    return 0 if all_done else EXIT_FAILED


def _lives(console: Console, allocation: Allocation) -> bool:
    try:
        return console.ledger.get(allocation.allocation_id).state is not State.RELEASED
    except AllocationNotFound:
        return False


def _told(console: Console, allocation: Allocation, state: State, *, done: bool) -> str:
    label = f"{allocation.allocation_id} (task {allocation.task_id})"
    if done:
        by_hand = allocation.kind is Kind.MANUAL
        later = "" if console.publishes or by_hand else "; a worker writes its result (or name the app: -A proj)"
        return f"{label} was {state.value.replace('_', ' ')} and is cancelled{later}"
    if state is State.RUNNING:
        end = f"celery -A proj control terminate SIGTERM {allocation.task_id}"
        return f"{label} runs and was left alone; to end it: {end}"
    return f"{label} has ended already"


COMMANDS: tuple[click.Command, ...] = (hold, unhold, priority, front, cancel)
