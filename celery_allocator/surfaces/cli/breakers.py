"""Commands of the circuit breakers: breaker list, open, close."""

from __future__ import annotations

import json
from typing import Any

import click

from celery_allocator.ledger import BreakerState
from celery_allocator.model import iso_utc
from celery_allocator.operations import CloseBreaker, Command, OpenBreaker
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import broken_names, completes, task_names
from celery_allocator.surfaces.cli.console import Console, acting, json_option, pass_console, print_json


@click.group(invoke_without_command=True)
@json_option
@pass_console
@click.pass_context
def breaker(ctx: click.Context, console: Console, *, as_json: bool) -> None:
    """Task names that are not granted freely, because too many of their tasks failed or an operator said so.

    Without a subcommand: those names, and how many tasks each has set aside.
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = [_row(state) for state in console.ledger.breakers() if state.allows is not None or state.aside]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("Every breaker is closed.")
    else:
        heads = ("TASK NAME", "STATE", "SINCE", "BY", "MAY PASS", "SET ASIDE")
        click.echo(text.table(heads, (tuple(row.values()) for row in rows)))


@breaker.command("open")
@click.argument("name", shell_complete=completes(task_names))
@json_option
@acting
@pass_console
def open_(console: Console, name: str, *, as_json: bool) -> None:
    """Grant no more tasks of NAME, until it is closed by hand. What runs goes on; what is submitted is set aside."""
    _set(console, OpenBreaker(name), as_json=as_json)


@breaker.command()
@click.argument("name", shell_complete=completes(broken_names))
@json_option
@acting
@pass_console
def close(console: Console, name: str, *, as_json: bool) -> None:
    """Grant tasks of NAME again. Its failures are counted from now on."""
    _set(console, CloseBreaker(name), as_json=as_json)


def _set(console: Console, command: Command, *, as_json: bool) -> None:
    effect = console.operator.run(command)
    if as_json:
        print_json({"success": True, "text": effect.text, "entry": effect.entry})
    else:
        click.echo(effect.text)


def _row(state: BreakerState) -> dict[str, Any]:
    try:
        memory = json.loads(state.memory or "{}")
    except ValueError:
        memory = {}
    since = memory.get("since")
    return {
        "name": state.name,
        "state": "closed" if state.allows is None else "open" if state.allows == 0 else "half-open",
        "since": iso_utc(float(since)) if since else None,
        "by": memory.get("by", "failures"),
        "may_pass": state.allows,
        "set_aside": state.aside,
    }


COMMANDS: tuple[click.Command, ...] = (breaker,)
