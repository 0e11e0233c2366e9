"""The tables of a frame: which rows, in which order, under which title. For the screen and for plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from celery_allocator.model import TenantState
from celery_allocator.overview import Running, Waiting
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import Pieces
from celery_allocator.surfaces.terminal.columns import Column, line, widths
from celery_allocator.surfaces.terminal.frame import Frame
from celery_allocator.surfaces.terminal.places import PLACES, Place
from celery_allocator.surfaces.terminal.tasks import QUEUE, RUNNING
from celery_allocator.surfaces.terminal.tenancy import NOBODY, TENANTS

R = TypeVar("R")


@dataclass(frozen=True)
class Sorting:
    """By which column (``None``: as the ledger has it), and whether the other way round."""

    by: int | None = None
    reverse: bool = False


@dataclass(frozen=True)
class Table(Generic[R]):
    """``rows``: those of a frame that a text is found in (``""``: all). ``key``: what a row is called.

    ``flatten``: rows in the ledger's order as rows that can stand in any.
    """

    name: str
    columns: tuple[Column[R], ...]
    rows: Callable[[Frame, str], list[R]]
    key: Callable[[R], str]
    title: Callable[[Frame, int], str]
    flatten: Callable[[list[R]], list[R]] = lambda rows: rows

    def sorted(self, rows: list[R], sorting: Sorting) -> list[R]:
        """Rows in an order."""
        if sorting == Sorting():
            return rows
        rows = self.flatten(rows)
        if sorting.by is not None:
            rows = sorted(rows, key=self.columns[sorting.by].order)
        return rows[::-1] if sorting.reverse else rows

    def heads(self, width: int, sorting: Sorting | None = None) -> list[tuple[str, int]]:
        """The heads of the columns that ``width`` has room for, and how wide they are. The sorted one is marked."""
        found = []
        for column, share in widths(self.columns, width):
            sorted_by = sorting is not None and sorting.by is not None and self.columns[sorting.by] is column
            mark = ("▲" if sorting and sorting.reverse else "▼") if sorted_by else ""
            head = words.fit(column.head, min(len(column.head), share - len(mark))) + mark
            found.append((words.fit(head, share, right=column.right), share))
        return found

    def cells(self, row: R, now: float, width: int) -> list[Pieces]:
        """One row, column by column."""
        return [
            line(column.cell(row, now, share), share, right=column.right)
            for column, share in widths(self.columns, width)
        ]


def _found(text: str, *names: str | None) -> bool:
    return not text or any(text.lower() in name.lower() for name in names if name)


def _places(frame: Frame, text: str) -> list[Place]:
    found = []
    for node in frame.overview.nodes:
        devices = [
            Place(node, one)
            for one in node.devices
            if _found(text, one.device.key, one.device.model, one.device.state, one.device.worker)
        ]
        if devices or _found(text, node.node.node, node.node.state):
            found += [Place(node), *devices]
    return found


def _flat(rows: list[Place]) -> list[Place]:
    return [replace(row, flat=True) for row in rows if row.device is not None]


def _running(frame: Frame, text: str) -> list[Running]:
    def meant(row: Running) -> bool:
        a = row.allocation
        on = (f"{a.node}/{device}" for device in a.device_ids)
        return _found(text, a.task_name, a.task_id, a.allocation_id, *on, a.requirements.tenant)

    return [row for row in frame.overview.running if meant(row)]


def _waiting(frame: Frame, _: str) -> list[Waiting]:
    return list(frame.page.rows)


def _tenants(frame: Frame, text: str) -> list[TenantState]:
    outlook = frame.overview.outlook
    return [row for row in outlook.tenants if _found(text, row.name or NOBODY)] if outlook.is_shared else []


def _title_tenants(frame: Frame, shown: int) -> str:
    outlook = frame.overview.outlook
    return f"TENANTS  {_counted(shown, len(outlook.tenants) if outlook.is_shared else 0, 'tenant')}"


def _counted(count: int, whole: int, one: str) -> str:
    many = f"{whole:,} {one}{'' if whole == 1 else 's'}"
    return many if count == whole else f"{count:,} of {many}"


def _title_places(frame: Frame, shown: int) -> str:
    gpus = [one for one in frame.overview.devices if one.device.is_gpu]
    told = [
        _counted(len(frame.overview.nodes), len(frame.overview.nodes), "node"),
        _counted(len(gpus), len(gpus), "GPU"),
    ]
    if gpus:
        promised, whole = sum(one.memory.promised for one in gpus), sum(one.memory.capacity for one in gpus)
        told.append(f"{words.size(promised)}/{words.size(whole)}")
    if frame.ask.text:
        told.append(f"{shown:,} found")
    return f"DEVICES  {'  '.join(told)}"


def _title_running(frame: Frame, shown: int) -> str:
    return f"RUNNING, GRANTED  {_counted(shown, len(frame.overview.running), 'task')}"


def _title_queue(frame: Frame, shown: int) -> str:
    page, ask = frame.page, frame.ask
    told = f"{ask.view.replace('_', ' ').upper()}  {page.total:,}"
    if ask.text:
        told += f", {page.matched:,} found"
    if shown and shown < page.matched:
        told += f"; {ask.offset + 1:,} to {ask.offset + shown:,} shown"
    return f"{told}{_dates(frame)}" if ask.view == "waiting" else told


def _dates(frame: Frame) -> str:
    """How true the dates were so far."""
    scored = frame.overview.outlook.scored
    if scored is None or scored.covered is None or scored.median_error_s is None:
        return ""
    return f"   dates: {scored.covered:.0%} by their p90, half off by <{words.span(scored.median_error_s)}"


DEVICES: Table[Place] = Table("devices", PLACES, _places, lambda row: row.key, _title_places, _flat)
HELD: Table[Running] = Table("running", RUNNING, _running, lambda row: row.allocation.allocation_id, _title_running)
LINE: Table[Waiting] = Table("queue", QUEUE, _waiting, lambda row: row.allocation.allocation_id, _title_queue)
SHARES: Table[TenantState] = Table("tenants", TENANTS, _tenants, lambda row: row.name, _title_tenants)
TABLES: tuple[Table[Any], ...] = (DEVICES, SHARES, HELD, LINE)


def head(frame: Frame) -> tuple[str, str]:
    """The two lines above: which pool and ledger; how many of what."""
    cluster = frame.overview.cluster
    counts = (
        f"{cluster.running:,} running  {cluster.granted:,} granted  {cluster.waiting:,} waiting  "
        f"{cluster.delayed:,} delayed  {cluster.on_hold:,} on hold"
    )
    outlook = frame.overview.outlook
    if outlook.is_shared:
        counts += f"  {_counted(len(outlook.tenants), len(outlook.tenants), 'tenant')}"
    return words.clean(f"pool {cluster.pool}  {frame.url}"), counts


def notice(frame: Frame) -> str:
    """Why nothing is granted in the whole pool; empty where it is."""
    return {
        "stopped": "STOPPED: an operator has paused the pool; nothing is granted (resume).",
        "paused": "PAUSED: the server was restarted; nothing is granted before the workers have reported.",
    }.get(frame.overview.cluster.paused, "")


def flat(pieces: Iterable[tuple[str, str]]) -> str:
    """Pieces without their styles."""
    return "".join(text for text, _ in pieces)
