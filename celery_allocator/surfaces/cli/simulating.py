"""The command that replays a trace: simulate."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from celery_allocator.errors import AllocatorError
from celery_allocator.model import Quota, Strategy, label
from celery_allocator.simulator import (
    OPTIONS,
    Figures,
    Replay,
    Waits,
    drawing,
    figures,
    private_server,
    read_nodes,
    read_trace,
)
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import json_option, print_json

#: Events between two looks at the progress bar.
_STEP = 250
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


class _Speed(click.ParamType[Any]):
    """``max``, or how many virtual seconds pass in one."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value is None or value == "max":
            return None
        try:
            factor = float(value)
        except ValueError:
            factor = 0.0
        if not 0 < factor < float("inf"):
            self.fail(f"{value!r} is neither max nor a number above 0", param, ctx)
        return factor


class _Weight(click.ParamType[Any]):
    """``vision=2``."""

    name = "weight"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Quota]:
        if isinstance(value, tuple):
            return value
        tenant, _, weight = value.rpartition("=")
        try:
            return label("tenant", tenant, without="/,"), Quota(float(weight))
        except (ValueError, AllocatorError) as error:
            self.fail(f"{value!r} is no tenant with its weight, such as vision=2: {error}", param, ctx)


@click.command()
@click.argument("trace", type=_FILE)
@click.option("--nodes", type=_FILE, required=True, help="CSV of the nodes.")
@click.option(
    "--strategy",
    type=click.Choice([strategy.value for strategy in Strategy]),
    default=Strategy.BEST_FIT.value,
    show_default=True,
    help="The rule that picks the device.",
)
@click.option(
    "--speed",
    type=_Speed(),
    default="max",
    metavar="max|FACTOR",
    help="Virtual seconds per second; max: as fast as it can.  [default: max]",
)
@click.option(
    "--backfill",
    type=click.Choice(("easy", "greedy", "none")),
    default=OPTIONS.backfill,
    show_default=True,
    help="Who may pass the first in line that does not fit (setting allocator_backfill).",
)
@click.option(
    "--weight",
    "weights",
    type=_Weight(),
    multiple=True,
    metavar="TENANT=NUMBER",
    help="A tenant's weight among the others (1); may be given several times.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N tasks.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Orders tasks submitted, and endings, at the same time; 0: as in the trace.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw use and waiting there (.png, .svg)."
)
@json_option
def simulate(
    trace: Path,
    nodes: Path,
    strategy: str,
    speed: float | None,
    backfill: str,
    weights: tuple[tuple[str, Quota], ...],
    limit: int | None,
    seed: int,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    """Replay TRACE, a CSV of tasks, on simulated nodes: waits, slowdown, use, fragmentation, how true the dates were.

    Tasks go through the ledger's own scripts, on a private server and a clock that jumps from event to event; nothing
    of yours is touched. The same tables, options and seed give the same figures. Columns: docs/howto/simulate.md.
    """
    if plot is not None and plot.suffix.lstrip(".") not in drawing.formats():
        raise click.BadParameter(f"{plot.name!r} must end in .png or .svg", param_hint="--plot")
    there, tasks = read_nodes(nodes), read_trace(trace, limit)
    with (
        _ended_in_order(),
        private_server() as client,
        click.progressbar(length=2 * len(tasks), label="simulating", file=sys.stderr) as bar,
    ):

        def progress(done: int, total: int) -> None:
            if done % _STEP == 0 or done == total:
                bar.update(done - bar.pos)

        options = replace(OPTIONS, backfill=backfill)
        replay = Replay(
            client,
            there,
            strategy=Strategy(strategy),
            options=options,
            quotas=dict(weights),
            seed=seed,
            speed=speed,
            on_progress=progress,
        )
        replayed = replay.run(tasks)
    found = figures(replayed)
    if plot is not None:
        _drawn(replayed, plot, f"{trace.name}, {strategy}")
    if as_json:
        asked = {"trace": trace.name, "strategy": strategy, "backfill": backfill, "seed": seed}
        print_json({"success": True, **asked, **found.as_dict()})
    else:
        click.echo(_told(found))


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Asked to end, it stops its server first."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drawn(replayed: Any, plot: Path, title: str) -> None:
    try:
        drawing.draw(replayed, plot, title)
    except OSError as error:
        raise click.ClickException(f"{str(plot)!r} cannot be written: {error.strerror or error}") from error
    click.echo(f"wrote {plot}", err=True)


def _told(found: Figures) -> str:
    dates = found.dates
    rows: list[tuple[str, Any]] = [
        ("tasks", found.tasks),
        ("could never fit", found.never or None),
        ("still waiting at the end", found.unstarted or None),
        ("waited", f"{found.waited} ({_percent(found.waited / found.tasks)})"),
        ("wait", _waits(found.waits)),
        ("wait of the largest 5 %", _waits(found.waits_largest)),
        ("mean bounded slowdown", None if found.slowdown is None else f"{found.slowdown:.2f}"),
        ("makespan", text.span(found.makespan_s)),
        ("GPU memory in use", _percent(found.gpu_memory_utilisation)),
        ("cores in use", _percent(found.cpu_utilisation)),
        ("fragmentation", _percent(found.fragmentation)),
        ("dates scored", dates.scored or None),
        ("started by their p90", _percent(dates.p90_coverage)),
        ("median error of dates", None if dates.median_error_s is None else text.span(dates.median_error_s)),
        ("by the naive rule", None if dates.naive_median_error_s is None else text.span(dates.naive_median_error_s)),
    ]
    told = text.pairs((name, value) for name, value in rows if value is not None)
    return f"{told}\n\n{_tenants(found)}" if found.tenants else told


def _tenants(found: Figures) -> str:
    heads = ("TENANT", "TASKS", "MEAN WAIT", "P95 WAIT", "LONGEST", "SLOWDOWN")
    rows = [
        (
            name or "-",
            of.tasks,
            *(text.span(s) for s in (of.waits.mean_s, of.waits.p95_s, of.waits.max_s)),
            f"{of.slowdown:.2f}",
        )
        for name, of in found.tenants.items()
        if of.waits is not None
    ]
    return text.table(heads, rows)


def _waits(waits: Waits | None) -> str | None:
    if waits is None:
        return None
    named = (("mean", waits.mean_s), ("p50", waits.p50_s), ("p95", waits.p95_s), ("max", waits.max_s))
    return ", ".join(f"{name} {text.span(seconds)}" for name, seconds in named)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


COMMANDS: tuple[click.Command, ...] = (simulate,)
