"""The command that checks the ledger, and mends it."""

from __future__ import annotations

import click

from celery_allocator.surfaces.cli.console import EXIT_FAILED, Console, json_option, pass_console, print_json


@click.command()
@click.option("--repair", is_flag=True, help="Rebuild what is counted from the allocations' records.")
@click.option("--yes", is_flag=True, help="Do not ask before repairing.")
@json_option
@pass_console
@click.pass_context
def verify(ctx: click.Context, console: Console, *, repair: bool, yes: bool, as_json: bool) -> None:
    """Recompute the whole ledger from its allocations and tell each difference.

    Exit code 1 if any is left. Workers look at a part of it with every tick, and log what is wrong.
    """
    if repair and as_json and not yes:
        raise click.UsageError("--repair with --json cannot ask: add --yes")
    found = console.ledger.verify()
    left = found
    if found and not as_json:
        click.echo("\n".join(found), err=True)
    if repair and found:
        if not yes:
            click.confirm(f"Rebuild what is counted ({len(found)} differences)?", abort=True, err=True)
        repaired = console.ledger.repair()
        console.publish(repaired.grants)
        left = list(repaired.left)
        if left and not as_json:
            click.echo("\n".join(["Left as it is:", *left]), err=True)
    if as_json:
        reply = {"success": not left, "differences": found}
        print_json({**reply, "left": left} if repair else reply)
    elif not left:
        click.echo(f"Repaired: {len(found)} differences." if found else "The ledger is right.")
    ctx.exit(EXIT_FAILED if left else 0)


COMMANDS: tuple[click.Command, ...] = (verify,)
