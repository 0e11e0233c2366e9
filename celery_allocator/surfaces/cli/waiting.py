"""Commands on what waits: hold, unhold, priority, front, cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from celery_allocator.errors import ActionRefused, AllocationNotFound
from celery_allocator.model import FIELDS, Allocation, Kind, State
from celery_allocator.operations import Cancel, Command, Effect, Front, Hold, Priority, Unhold
from celery_allocator.surfaces.cli.completing import can_be_cancelled, completes, ids
from celery_allocator.surfaces.cli.console import (
    EXIT_FAILED,
    Console,
    acting,
    json_option,
    pass_console,
    print_json,
)
from celery_allocator.surfaces.cli.named import named, which_argument

_BOUNDS = FIELDS["priority"]


@click.command()
@which_argument(completes(ids("queue", "delayed")))
@json_option
@acting
@pass_console
@click.pass_context
def hold(ctx: click.Context, console: Console, which: str, *, as_json: bool) -> None:
    """Put what waits or is delayed on hold: it keeps its place in line, and is not granted."""
    ctx.exit(_each(console, which, lambda a: Hold(a.allocation_id), as_json=as_json))


@click.command()
@which_argument(completes(ids("on_hold")))
@json_option
@acting
@pass_console
@click.pass_context
def unhold(ctx: click.Context, console: Console, which: str, *, as_json: bool) -> None:
    """Let what is on hold go on."""
    ctx.exit(_each(console, which, lambda a: Unhold(a.allocation_id), as_json=as_json))


# A negative number is no option.
@click.command(context_settings={"ignore_unknown_options": True})
@which_argument(completes(ids("queue", "delayed", "on_hold")))
@click.argument("value", type=click.IntRange(_BOUNDS.minimum, _BOUNDS.maximum), metavar="PRIORITY")
@json_option
@acting
@pass_console
@click.pass_context
def priority(ctx: click.Context, console: Console, which: str, value: int, *, as_json: bool) -> None:
    """Give what has not been granted another priority: larger starts first."""
    ctx.exit(_each(console, which, lambda a: Priority(a.allocation_id, value), as_json=as_json))


@click.command()
@which_argument(completes(ids("queue", "delayed", "on_hold")))
@json_option
@acting
@pass_console
@click.pass_context
def front(ctx: click.Context, console: Console, which: str, *, as_json: bool) -> None:
    """Move what has not been granted before the first in line. What comes later with a larger priority passes it."""
    ctx.exit(_each(console, which, lambda a: Front(a.allocation_id), as_json=as_json))


@click.command()
@which_argument(completes(ids("queue", "delayed", "on_hold", "held", only=can_be_cancelled)))
@json_option
@acting
@pass_console
@click.pass_context
def cancel(ctx: click.Context, console: Console, which: str, *, as_json: bool) -> None:
    """End what has not started, or was allocated by hand.

    A task that runs is left alone: `celery -A proj control terminate SIGTERM TASK_ID` ends it.
    """
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
    ctx.exit(0 if all_done else EXIT_FAILED)


def _each(console: Console, which: str, make: Callable[[Allocation], Command], *, as_json: bool) -> int:
    """Run a command on every allocation that ``which`` names; returns the exit code."""
    rows: list[dict[str, Any]] = []
    for allocation in named(console.ledger, which):
        row: dict[str, Any] = {"allocation_id": allocation.allocation_id}
        try:
            effect: Effect = console.operator.run(make(allocation))
        except (ActionRefused, AllocationNotFound) as error:
            rows.append({**row, "done": False, "error": error.as_dict()})
            if not as_json:
                click.echo(f"Error: {error}", err=True)
        else:
            rows.append({**row, "done": True, "entry": effect.entry})
            if not as_json:
                click.echo(effect.text)
    done = all(row["done"] for row in rows)
    if as_json:
        print_json({"success": done, "allocations": rows})
    return 0 if done else EXIT_FAILED


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
