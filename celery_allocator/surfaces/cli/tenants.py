"""Commands of tenants: what each holds, waits for and may hold; its weight and its caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from celery_allocator.model import CAPS, TenantState
from celery_allocator.operations import Command, ResetTenant, SetTenant
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import completes, tenant_names
from celery_allocator.surfaces.cli.console import Console, acting, json_option, pass_console, print_json

F = TypeVar("F", bound=Callable[..., Any])


class _Cap(click.ParamType[int]):
    """A whole number, or ``none``."""

    name = "cap"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """-1 stands for none."""
        if isinstance(value, int):
            return value
        if value.strip().lower() == "none":
            return _NONE
        if not (value.isascii() and value.isdecimal()):
            self.fail(f"{value!r} is neither a whole number nor 'none'", param, ctx)
        return int(value)


_NONE = -1


def _options(command: F) -> F:
    for cap, counts in reversed(CAPS.items()):
        name = "--" + cap.removesuffix("_mb").replace("_", "-")
        unit = "MB|none" if cap.endswith("_mb") else "N|none"
        command = click.option(name, cap, type=_Cap(), metavar=unit, help=f"Cap: {counts}.")(command)
    return command


_name = click.argument("name", metavar="TENANT", shell_complete=completes(tenant_names))


@click.group(invoke_without_command=True)
@json_option
@pass_console
@click.pass_context
def tenant(ctx: click.Context, console: Console, *, as_json: bool) -> None:
    """Tenants: whose turn it is, what each holds, and what it may hold. Without a subcommand: list."""
    if ctx.invoked_subcommand is None:
        _list(console, as_json=as_json)


@tenant.command("list")
@json_option
@pass_console
def list_(console: Console, *, as_json: bool) -> None:
    """Every tenant that holds something, waits, or has a quota.

    SHARE is its largest share of all GPU memory, cores or RAM, divided by its weight: whose is smallest is next.
    """
    _list(console, as_json=as_json)


@tenant.command("set")
@_name
@click.option("--weight", type=float, metavar="N", help="Its share beside the others': 2 is twice that of 1.")
@_options
@json_option
@acting
@pass_console
def set_(console: Console, /, name: str, *, as_json: bool, **given: Any) -> None:
    """Give TENANT a weight or caps; what is not named stays as it is. What it holds already stays.

    '' is all that name no tenant; these have a weight only.
    """
    changes = {
        key: None if value == _NONE and key in CAPS else value for key, value in given.items() if value is not None
    }
    if not changes:
        options = ", ".join("--" + key.removesuffix("_mb").replace("_", "-") for key in ("weight", *CAPS))
        raise click.UsageError(f"nothing to set: give one at least of {options}")
    _run(console, SetTenant.changed(console.ledger, name, **changes), as_json=as_json)


@tenant.command()
@_name
@json_option
@acting
@pass_console
def reset(console: Console, name: str, *, as_json: bool) -> None:
    """Take weight and caps from TENANT. Those of the setting allocator_tenants come back when a worker starts."""
    _run(console, ResetTenant(name), as_json=as_json)


def _run(console: Console, command: Command, *, as_json: bool) -> None:
    console.session.upkeep()
    effect = console.operator.run(command)
    if as_json:
        granted = [grant.allocation_id for grant in effect.grants]
        print_json({"success": True, "text": effect.text, "granted": granted, "entry": effect.entry})
    else:
        click.echo(effect.text)


def _list(console: Console, *, as_json: bool) -> None:
    console.session.upkeep()
    found = console.ledger.tenants()
    if as_json:
        print_json([state.as_dict() for state in found])
    elif not found:
        click.echo("No tenant holds anything, waits, or has a quota.")
    else:
        click.echo(text.table(_HEADS, (_row(state) for state in found)))


_HEADS = (
    *("TENANT", "WEIGHT", "SHARE", "WAITING", "GPU MB", "OF", "CORES", "OF", "RAM MB", "OF", "TASKS", "OF"),
    "SET BY",
)


def _row(state: TenantState) -> tuple[Any, ...]:
    holds = ((getattr(state, cap), getattr(state.quota, cap)) for cap in CAPS)
    amounts = (amount for pair in holds for amount in pair)
    share = f"{100 * state.share:.1f} %"
    return (state.name or "(none)", f"{state.quota.weight:g}", share, state.waiting, *amounts, state.by)


COMMANDS: tuple[click.Command, ...] = (tenant,)
