"""Commands for operators: cordon, uncordon, drain, tick."""

from __future__ import annotations

import time

import click

from celery_allocator.errors import AllocationTimeout
from celery_allocator.surfaces.cli.console import EXIT_FAILED, Console, json_option, pass_console, print_json

#: Seconds between two looks at a node that empties.
_WATCH_S = 0.2

_target = click.argument("target", metavar="NODE|NODE/DEVICE")


@click.command()
@_target
@json_option
@pass_console
def cordon(console: Console, target: str, *, as_json: bool) -> None:
    """Grant nothing new on a node or device. What it holds, granted or running, goes on."""
    held = _cordon(console, target, drain=False)
    if as_json:
        print_json({"success": True, "target": target, "state": "cordoned", "held": held})
    else:
        click.echo(f"{target} is cordoned; {_count(held)} held there")


@click.command()
@_target
@json_option
@pass_console
def uncordon(console: Console, target: str, *, as_json: bool) -> None:
    """Grant on a node or device again."""
    console.session.upkeep()
    grants = console.ledger.uncordon(target, publishes=console.publishes)
    console.publish(grants)
    if as_json:
        print_json({"success": True, "target": target, "state": "ready", "granted": [g.allocation_id for g in grants]})
    else:
        click.echo(f"{target} is ready")


@click.command()
@_target
@click.option("--wait", is_flag=True, help="Show progress until nothing runs there.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer (with --wait)."
)
@json_option
@pass_console
@click.pass_context
def drain(
    ctx: click.Context, console: Console, target: str, timeout_s: float | None, *, wait: bool, as_json: bool
) -> None:
    """Empty a node or device: grant nothing new, take back what has not started, let what runs end."""
    held = _cordon(console, target, drain=True)
    if not as_json:
        click.echo(f"{target} is draining; {_count(held)} still there")
    if wait:
        held = _watch(console, target, held, timeout_s, quiet=as_json)
    if as_json:
        print_json({"success": not (wait and held), "target": target, "state": "draining", "held": held})
    elif wait and not held:
        click.echo(f"{target} is empty")
    if wait and held:
        late = AllocationTimeout(f"{_count(held)} still on {target} after {timeout_s:g} s; it goes on draining")
        click.echo(f"Error: {late}", err=True)
        ctx.exit(EXIT_FAILED)


@click.command()
@json_option
@pass_console
def tick(console: Console, *, as_json: bool) -> None:
    """One step of maintenance, as workers take about once a second: end what is over, grant what fits."""
    ticked = console.ledger.tick(publishes=console.publishes, away_s=None)
    console.publish(ticked.grants)
    for obituary in ticked.obituaries:
        console.settle(obituary)
    if as_json:
        print_json(
            {
                "success": True,
                "granted": [grant.allocation_id for grant in ticked.grants],
                "ended": [obituary.allocation_id for obituary in ticked.obituaries],
                "lost_workers": list(ticked.lost_workers),
            }
        )
    else:
        click.echo(
            f"{len(ticked.grants)} granted, {len(ticked.obituaries)} ended, "
            f"lost workers: {', '.join(ticked.lost_workers) or 'none'}"
        )


def _cordon(console: Console, target: str, *, drain: bool) -> list[str]:
    console.session.upkeep()
    grants, held = console.ledger.cordon(target, drain=drain, publishes=console.publishes)
    console.publish(grants)
    return sorted(held)


def _watch(console: Console, target: str, held: list[str], timeout_s: float | None, *, quiet: bool) -> list[str]:
    """Wait until ``target`` holds nothing, or for ``timeout_s`` seconds; returns what it still holds."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while held and (deadline is None or time.monotonic() < deadline):
        time.sleep(_WATCH_S)
        console.session.upkeep()
        now = _held(console, target)
        if now != held and now and not quiet:
            click.echo(f"{_count(now)} still there: {', '.join(now[:5])}{' …' if len(now) > 5 else ''}")
        held = now
    return held


def _held(console: Console, target: str) -> list[str]:
    node, _, _ = target.partition("/")
    state = console.ledger.node(node)
    devices = () if state is None else state.devices
    return sorted(held for device in devices if target in (node, device.key) for held in device.allocations)


def _count(held: list[str]) -> str:
    return f"{len(held)} allocation{'' if len(held) == 1 else 's'}"


COMMANDS: tuple[click.Command, ...] = (cordon, uncordon, drain, tick)
