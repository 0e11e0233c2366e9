"""Commands on single allocations: allocate, renew, release, show, cancel."""

from __future__ import annotations

from typing import Any

import click

from celery_allocator.allocating.command import allocation_options, emit, run
from celery_allocator.allocating.function import release_resources, renew_resources
from celery_allocator.errors import AllocationNotFound
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, Kind
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import EXIT_FAILED, Console, json_option, pass_console, print_json

#: These print the replies of the function form, which are JSON anyway.
_always_json = click.option("--json", is_flag=True, expose_value=False, help="Print JSON (always so here).")


@click.command()
@allocation_options
@_always_json
@pass_console
@click.pass_context
def allocate(ctx: click.Context, console: Console, /, **given: Any) -> None:
    """Allocate GPU memory, CPU cores and RAM for TASK_ID by hand, until released or until the TTL ends."""
    ctx.exit(run(console.session, given))


@click.command()
@click.argument("allocation_id")
@click.option("--token", type=int, help="Only if the claim still has this token.")
@_always_json
@pass_console
@click.pass_context
def release(ctx: click.Context, console: Console, allocation_id: str, token: int | None) -> None:
    """Give back an allocation made by hand, or take it out of line."""
    ctx.exit(emit(release_resources(allocation_id, token, session=console.session)))


@click.command()
@click.argument("allocation_id")
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", help="Life from now (setting allocator_ttl_s).")
@click.option("--token", type=int, help="Only if the claim still has this token.")
@_always_json
@pass_console
@click.pass_context
def renew(ctx: click.Context, console: Console, allocation_id: str, ttl_s: float | None, token: int | None) -> None:
    """Let an allocation made by hand live longer."""
    ctx.exit(emit(renew_resources(allocation_id, ttl_s, token, session=console.session)))


@click.command()
@click.argument("which", metavar="ALLOCATION_ID|TASK_ID")
@json_option
@pass_console
def show(console: Console, which: str, *, as_json: bool) -> None:
    """Everything known of an allocation, or of all of a task's."""
    console.session.upkeep()
    found = _named(console.ledger, which)
    if as_json:
        print_json([_as_data(allocation) for allocation in found])
    else:
        click.echo("\n\n".join(text.described(allocation) for allocation in found))


@click.command()
@click.argument("which", metavar="ALLOCATION_ID|TASK_ID")
@json_option
@pass_console
@click.pass_context
def cancel(ctx: click.Context, console: Console, which: str, *, as_json: bool) -> None:
    """End what has not started, or was allocated by hand.

    A task that runs is left alone: `celery -A proj control revoke --terminate TASK_ID` ends it.
    """
    rows = []
    for allocation in _named(console.ledger, which):
        reply = console.ledger.cancel(allocation.allocation_id, publishes=console.publishes)
        console.publish(reply.grants)
        console.settle(reply.obituary)
        rows.append({"allocation_id": allocation.allocation_id, "was": reply.state, "cancelled": reply.done})
        if not as_json:
            click.echo(_told(console, allocation, reply.state, done=reply.done), err=not reply.done)
    done = all(row["cancelled"] for row in rows)
    if as_json:
        print_json({"success": done, "allocations": rows})
    ctx.exit(0 if done else EXIT_FAILED)


def _named(ledger: Ledger, which: str) -> tuple[Allocation, ...]:
    """The allocation of that id, else those of the task of that id."""
    if not which.isprintable():
        raise AllocationNotFound("that is not an id of an allocation or a task")
    try:
        return (ledger.get(which),)
    except AllocationNotFound:
        found = ledger.find(which)
    if not found:
        raise AllocationNotFound(f"no live allocation or task {which!r}: it has ended or never was")
    return found


def _told(console: Console, allocation: Allocation, state: str, *, done: bool) -> str:
    if done:
        by_hand = allocation.kind is Kind.MANUAL
        later = "" if console.publishes or by_hand else "; a worker writes its result (or name the app: -A proj)"
        return f"{allocation.allocation_id} (task {allocation.task_id}) was {state} and is cancelled{later}"
    if state == "running":
        return (
            f"{allocation.allocation_id} (task {allocation.task_id}) runs and was left alone; to end it: "
            f"celery -A proj control revoke --terminate {allocation.task_id}"
        )
    return f"{allocation.allocation_id} (task {allocation.task_id}) has ended already"


def _as_data(allocation: Allocation) -> dict[str, Any]:
    return {
        **allocation.to_wire(),
        "queue_position": allocation.queue_position,
        "estimated_start_at": allocation.estimated_start_at,
        "expires_at": allocation.expires_at,
        "eta_at": allocation.eta_at,
    }


COMMANDS: tuple[click.Command, ...] = (allocate, renew, release, show, cancel)
