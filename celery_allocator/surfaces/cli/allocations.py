"""Commands on single allocations: allocate, renew, release, show."""

from __future__ import annotations

from typing import Any

import click

from celery_allocator.allocating.command import allocation_options, emit, run
from celery_allocator.allocating.function import release_resources, renew_resources
from celery_allocator.model import Allocation
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import by_hand, completes, ids
from celery_allocator.surfaces.cli.console import Console, acting, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.named import named, which_argument

#: These print the replies of the function form, which are JSON anyway.
_always_json = click.option("--json", is_flag=True, expose_value=False, help="Print JSON (always so here).")


@click.command()
@allocation_options
@_always_json
@acting
@pass_console
@click.pass_context
def allocate(ctx: click.Context, console: Console, /, **given: Any) -> None:
    """Allocate GPU memory, CPU cores and RAM for TASK_ID by hand, until released or until the TTL ends."""
    ctx.exit(run(console.session, given))


@click.command()
@click.argument("allocation_id", shell_complete=completes(ids("held", "queue", "on_hold", only=by_hand, tasks=False)))
@click.option("--token", type=int, help="Only if the claim still has this token.")
@_always_json
@acting
@pass_console
@click.pass_context
def release(ctx: click.Context, console: Console, allocation_id: str, token: int | None) -> None:
    """Give back an allocation made by hand, or take it out of line."""
    ctx.exit(emit(release_resources(allocation_id, token, session=console.session)))


@click.command()
@click.argument("allocation_id", shell_complete=completes(ids("held", only=by_hand, tasks=False)))
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", help="Life from now (setting allocator_ttl_s).")
@click.option("--token", type=int, help="Only if the claim still has this token.")
@_always_json
@pass_console
@click.pass_context
def renew(ctx: click.Context, console: Console, allocation_id: str, ttl_s: float | None, token: int | None) -> None:
    """Let an allocation made by hand live longer."""
    ctx.exit(emit(renew_resources(allocation_id, ttl_s, token, session=console.session)))


@click.command()
@which_argument(completes(ids("held", "queue", "on_hold", "delayed")))
@json_option
@pass_console
def show(console: Console, which: str, *, as_json: bool) -> None:
    """Everything known of an allocation, or of all of a task's."""
    console.session.upkeep()
    found = named(console.ledger, which)
    if as_json:
        print_json([_as_data(allocation) for allocation in found])
    else:
        click.echo("\n\n".join(text.described(allocation) for allocation in found))


def _as_data(allocation: Allocation) -> dict[str, Any]:
    return {
        **allocation.to_wire(),
        "queue_position": allocation.queue_position,
        "estimated_start_at": allocation.estimated_start_at,
        "estimated_start_p90_at": allocation.estimated_start_p90_at,
        "expires_at": allocation.expires_at,
        "eta_at": allocation.eta_at,
        "on_hold_by": allocation.on_hold_by,
    }


COMMANDS: tuple[click.Command, ...] = (allocate, renew, release, show)
