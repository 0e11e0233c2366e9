"""Commands for operators: cordon, uncordon, drain, pause, resume, tick."""

from __future__ import annotations

import time

import click

from celery_allocator.errors import AllocationTimeout
from celery_allocator.operations import Command, Cordon, Drain, Effect, Pause, Resume, Uncordon
from celery_allocator.surfaces.cli.completing import completes, targets
from celery_allocator.surfaces.cli.console import (
    EXIT_FAILED,
    Console,
    acting,
    json_option,
    pass_console,
    print_json,
)

#: Seconds between two looks at a node that empties.
_WATCH_S = 0.2

_target = click.argument("target", metavar="NODE|NODE/DEVICE", shell_complete=completes(targets))


@click.command()
@_target
@json_option
@acting
@pass_console
def cordon(console: Console, target: str, *, as_json: bool) -> None:
    """Grant nothing new on a node or device. What it holds, granted or running, goes on."""
    effect = _run(console, Cordon(target))
    held = sorted(effect.held)
    if as_json:
        print_json({"success": True, "target": target, "state": "cordoned", "held": held, "entry": effect.entry})
    else:
        click.echo(f"{target} is cordoned; {_count(held)} held there")


@click.command()
@_target
@json_option
@acting
@pass_console
def uncordon(console: Console, target: str, *, as_json: bool) -> None:
    """Grant on a node or device again."""
    effect = _run(console, Uncordon(target))
    if as_json:
        granted = [grant.allocation_id for grant in effect.grants]
        print_json({"success": True, "target": target, "state": "ready", "granted": granted, "entry": effect.entry})
    else:
        click.echo(f"{target} is ready")


@click.command()
@_target
@click.option("--wait", is_flag=True, help="Show progress until nothing runs there.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer (with --wait)."
)
@json_option
@acting
@pass_console
@click.pass_context
def drain(
    ctx: click.Context, console: Console, target: str, timeout_s: float | None, *, wait: bool, as_json: bool
) -> None:
    """Empty a node or device: grant nothing new, take back what has not started, let what runs end."""
    effect = _run(console, Drain(target))
    held = sorted(effect.held)
    if not as_json:
        click.echo(f"{target} is draining; {_count(held)} still there")
    if wait:
        held = _watch(console, target, held, timeout_s, quiet=as_json)
    if as_json:
        done = not (wait and held)
        print_json({"success": done, "target": target, "state": "draining", "held": held, "entry": effect.entry})
    elif wait and not held:
        click.echo(f"{target} is empty")
    if wait and held:
        late = AllocationTimeout(f"{_count(held)} still on {target} after {timeout_s:g} s; it goes on draining")
        click.echo(f"Error: {late}", err=True)
        ctx.exit(EXIT_FAILED)


@click.command()
@json_option
@acting
@pass_console
def pause(console: Console, *, as_json: bool) -> None:
    """Grant nothing in the whole pool. What is granted already starts and runs; what is submitted waits."""
    _tell(_run(console, Pause()), as_json=as_json)


@click.command()
@json_option
@acting
@pass_console
def resume(console: Console, *, as_json: bool) -> None:
    """Grant in the pool again, after pause."""
    _tell(_run(console, Resume()), as_json=as_json)


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


def _run(console: Console, command: Command) -> Effect:
    console.session.upkeep()
    return console.operator.run(command)


def _tell(effect: Effect, *, as_json: bool) -> None:
    if as_json:
        granted = [grant.allocation_id for grant in effect.grants]
        print_json({"success": True, "text": effect.text, "granted": granted, "entry": effect.entry})
    else:
        click.echo(effect.text)


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


COMMANDS: tuple[click.Command, ...] = (cordon, uncordon, drain, pause, resume, tick)
