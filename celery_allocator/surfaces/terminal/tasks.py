"""The tables of what runs and of what waits."""

from __future__ import annotations

from typing import Any

from celery_allocator.model import Allocation
from celery_allocator.overview import Running, Waiting
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import Pieces
from celery_allocator.surfaces.terminal.columns import KEPT, Column, plain

#: Whom a row's task is for.
_TENANT: Column[Any] = Column(
    "TENANT",
    12,
    lambda row, _, w: plain(row.allocation.requirements.tenant),
    lambda row: row.allocation.requirements.tenant,
    since=119,
)

# --- what runs


def _used(running: Running, _: float, width: int) -> Pieces:
    use = running.use
    if use is None:
        return plain("-", "dim")
    over = any(_beyond(running))
    told = f"{words.size(use.gpu_memory_mb):>5} {words.size(use.ram_mb):>5}"
    return plain(f"{told}{'!' if over else ''}", "over" if over else "plain")


def _beyond(running: Running) -> tuple[bool, bool]:
    """Whether it uses more GPU memory, and RAM, than it was promised: as its worker judges, else as it was measured."""
    use, held = running.use, running.allocation
    if use is None:
        return False, False
    gpu, ram = use.gpu_memory_over_mb, use.ram_over_mb
    if gpu is None:
        gpu = (use.gpu_memory_mb or 0) - held.gpu_memory_mb
    if ram is None:
        ram = (use.ram_mb or 0) - held.ram_mb if held.ram_mb else 0
    return gpu > 0, ram > 0


def _since(running: Running, now: float, width: int) -> Pieces:
    allocation = running.allocation
    if allocation.started_at is None:
        return plain("granted", "warning")
    return plain(words.span(now - allocation.started_at))


def _device(allocation: Allocation) -> str:
    return allocation.place


RUNNING: tuple[Column[Running], ...] = (
    Column("NAME", 16, lambda row, _, w: plain(row.allocation.task_name), lambda row: row.allocation.task_name, grow=3),
    Column(
        "TASK", 11, lambda row, _, w: plain(row.allocation.task_id, "dim"), lambda row: row.allocation.task_id, grow=3
    ),
    Column(
        "DEVICE",
        12,
        lambda row, _, w: plain(words.end(_device(row.allocation), w)),
        lambda row: _device(row.allocation),
        grow=1,
    ),
    Column(
        "CLAIM GPU,C,RAM",
        16,
        lambda row, _, w: plain(words.claim(row.allocation.requirements)),
        lambda row: -row.allocation.gpu_memory_mb,
    ),
    Column("USED GPU,RAM", 12, _used, lambda row: -((row.use.gpu_memory_mb or 0) if row.use else -1)),
    Column("FOR", 7, _since, lambda row: row.allocation.started_at or float("inf"), right=True),
    _TENANT,
)


# --- what waits


def _estimate(row: Waiting, now: float, width: int) -> Pieces:
    a = row.allocation
    half, most = (a.eta_at,) * 2 if row.reason.code == "delayed" else (a.estimated_start_at, a.estimated_start_p90_at)
    told = "-" if row.reason.code == "on_hold" else words.starts(half, most, now)
    return plain(told, "dim" if told == "-" else "plain")


def _position(row: Waiting, _: float, width: int) -> Pieces:
    mark: Pieces = ((KEPT, "kept"),) if row.kept is not None and row.kept.device else ()
    return (*mark, *plain(str(row.allocation.queue_position or "-")))


def _why(row: Waiting, _: float, width: int) -> Pieces:
    text = words.clean(row.reason.text)
    return plain(text if words.cells(text) <= width else words.short(row.reason, width))


QUEUE: tuple[Column[Waiting], ...] = (
    Column(
        "POS",
        5,
        _position,
        lambda row: row.allocation.queue_position,
        right=True,
    ),
    Column("NAME", 12, lambda row, _, w: plain(row.allocation.task_name), lambda row: row.allocation.task_name, grow=2),
    Column(
        "TASK", 8, lambda row, _, w: plain(row.allocation.task_id, "dim"), lambda row: row.allocation.task_id, grow=2
    ),
    Column(
        "CLAIM GPU,C,RAM",
        16,
        lambda row, _, w: plain(words.claim(row.allocation.requirements)),
        lambda row: -row.allocation.gpu_memory_mb,
    ),
    Column(
        "PRIO",
        5,
        lambda row, _, w: plain(str(row.allocation.priority)),
        lambda row: -row.allocation.priority,
        right=True,
    ),
    Column(
        "AGE",
        6,
        lambda row, now, w: plain(words.span(now - row.allocation.submitted_at)),
        lambda row: row.allocation.submitted_at,
        right=True,
    ),
    Column("STARTS IN", 9, _estimate, lambda row: row.allocation.estimated_start_at or float("inf"), right=True),
    _TENANT,
    Column("WAITS FOR", 11, _why, lambda row: row.reason.text, grow=4),
)
