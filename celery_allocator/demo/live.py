"""What the demo shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from celery_allocator.demo.view import View
from celery_allocator.model import Allocation, DeviceState, State

#: Rows of the running and of the waiting table.
ROWS = 10
#: Seconds between plain lines.
LINE_EVERY_S = 2.0


class Display(Protocol):
    """Where the demo shows itself."""

    def say(self, text: str) -> None:
        """A line about what is being done."""

    def show(self, view: View) -> None:
        """The state now."""


class PlainDisplay:
    """Lines, one every :data:`LINE_EVERY_S` seconds at most."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def show(self, view: View) -> None:
        now = time.monotonic()
        if now >= self._next or view.done == view.total:
            self._next = now + LINE_EVERY_S
            self.say(line(view))


class LiveDisplay:
    """A table redrawn in place."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console = console
        self._live = live

    def say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)

    def show(self, view: View) -> None:
        self._live.update(table(view), refresh=True)


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[Display]:
    """The display that fits ``stream`` (stdout if none is given)."""
    stream = stream or sys.stdout
    if not stream.isatty():
        yield PlainDisplay(stream)
        return
    console = Console(file=stream)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield LiveDisplay(console, live)


def line(view: View) -> str:
    """The state in one line."""
    gpus = [
        f"{device.device_id} {device.memory_claimed_mb}/{device.memory_mb} MB"
        for device in view.cluster.devices
        if device.is_gpu
    ]
    cores = [
        f"cores {len(node.cpu_cores) - len(node.cpu_cores_free)}/{len(node.cpu_cores)}" for node in view.cluster.nodes
    ]
    counts = f"{view.done}/{view.total} done, {len(view.held)} running, {len(view.waiting)} waiting"
    failed = f", {view.failed} FAILED" if view.failed else ""
    return f"{view.elapsed_s:5.1f} s  {counts}{failed} │ {' │ '.join([*gpus, *cores])}"


def table(view: View) -> RenderableType:
    """The state as tables and bars."""
    counts = Text.assemble(
        ("celery-allocator demo  ", "bold"),
        f"{view.elapsed_s:.0f} s   {view.done} of {view.total} done, {len(view.held)} running, ",
        f"{len(view.waiting)} waiting",
        (f", {view.failed} failed" if view.failed else "", "bold red"),
    )
    progress = Table.grid(padding=(0, 1))
    progress.add_row(ProgressBar(total=view.total, completed=view.done, width=60), f"{view.done / view.total:.0%}")
    return Group(counts, progress, Text(), _devices(view), Text(), _running(view), Text(), _waiting(view))


def _devices(view: View) -> Table:
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("device", "GPU memory", "", "cores", "", "slots"):
        rows.add_column(title)
    for node in view.cluster.nodes:
        for device in node.devices:
            cores = sum(len(a.cpu_cores) for a in view.held if a.node == node.node and a.device_id == device.device_id)
            used_mb = device.memory_claimed_mb
            rows.add_row(
                device.key,
                ProgressBar(total=device.memory_mb, completed=used_mb, width=24) if device.is_gpu else "",
                f"{used_mb}/{device.memory_mb} MB" if device.is_gpu else "",
                ProgressBar(total=len(node.cpu_cores), completed=cores, width=16),
                f"{cores}/{len(node.cpu_cores)}",
                _slots(device),
            )
    return rows


def _slots(device: DeviceState) -> str:
    return f"{device.slots - device.slots_free}/{device.slots}" if device.slots else "no worker"


def _running(view: View) -> Table:
    rows = Table(title=f"running ({len(view.held)})", title_justify="left", box=None, pad_edge=False)
    for title in ("task", "where", "GPU memory", "core ids", "for"):
        rows.add_column(title, min_width=9)
    for allocation in view.held[:ROWS]:
        since = allocation.started_at or allocation.granted_at or view.cluster.at
        rows.add_row(
            view.name(allocation),
            allocation.device_id or "",
            _memory(allocation),
            ",".join(map(str, allocation.cpu_cores)),
            "granted" if allocation.state is State.GRANTED else f"{max(0.0, view.cluster.at - since):.1f} s",
        )
    return rows


def _waiting(view: View) -> Table:
    rows = Table(title=f"waiting ({len(view.waiting)})", title_justify="left", box=None, pad_edge=False)
    for title in ("position", "task", "GPU memory", "cores", "has waited", "starts in about"):
        rows.add_column(title, min_width=9)
    for allocation in view.waiting[:ROWS]:
        estimate = allocation.estimated_start_at
        rows.add_row(
            str(allocation.queue_position),
            view.name(allocation),
            _memory(allocation),
            str(allocation.requirements.cpu_cores),
            f"{view.cluster.at - allocation.submitted_at:.1f} s",
            "not known yet" if estimate is None else f"{max(0.0, estimate - view.cluster.at):.1f} s",
        )
    return rows


def _memory(allocation: Allocation) -> str:
    return f"{allocation.gpu_memory_mb} MB" if allocation.gpu_memory_mb else "none"
