"""Commands for messages that could not be read: parked list, requeue, discard."""

from __future__ import annotations

import click

from celery_allocator.model import iso_utc
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import completes, parked_ids
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json


@click.group(invoke_without_command=True)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@json_option
@pass_console
@click.pass_context
def parked(ctx: click.Context, console: Console, limit: int, *, as_json: bool) -> None:
    """Tasks whose message cannot be read: neither run nor dropped. Their callers were told (FAILURE).

    Without a subcommand: what is parked, oldest first.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = console.ledger.parked(limit=limit)
    if as_json:
        print_json(
            {
                "parked": [
                    {
                        "allocation_id": p.allocation_id,
                        "task_id": p.task_id,
                        "task_name": p.task_name,
                        "reason": p.reason,
                        "parked_at": iso_utc(p.parked_at),
                        "message_bytes": len(p.message),
                    }
                    for p in found
                ]
            }
        )
    elif not found:
        click.echo("Nothing is parked.")
    else:
        rows = ((p.allocation_id, p.task_name, iso_utc(p.parked_at), len(p.message), p.reason) for p in found)
        click.echo(text.table(("ALLOCATION", "TASK", "SINCE", "BYTES", "REASON"), rows))


@parked.command()
@click.argument("allocation_id", shell_complete=completes(parked_ids))
@json_option
@pass_console
def requeue(console: Console, allocation_id: str, *, as_json: bool) -> None:
    """Put a parked task into line again, under its old place: after a fix on the workers' side."""
    grants = console.ledger.unpark(allocation_id, requeue=True, publishes=console.publishes)
    console.publish(grants)
    _done(allocation_id, "in line again", as_json=as_json)


@parked.command()
@click.argument("allocation_id", shell_complete=completes(parked_ids))
@json_option
@pass_console
def discard(console: Console, allocation_id: str, *, as_json: bool) -> None:
    """Forget a parked task, with its message."""
    console.ledger.unpark(allocation_id, requeue=False)
    _done(allocation_id, "discarded", as_json=as_json)


def _done(allocation_id: str, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"success": True, "allocation_id": allocation_id, "now": what})
    else:
        click.echo(f"{allocation_id} is {what}")


COMMANDS: tuple[click.Command, ...] = (parked,)
