"""What of a device was in use by others while a task held it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from celery_allocator.history.entry import Entry
from celery_allocator.history.models import AllocationRow, DeviceStateRow, Event
from celery_allocator.history.store import History
from celery_allocator.history.stretches import of_events, of_row

#: Events after which nothing is withheld of a device, until its next worker says so.
_OVER = ("left", "worker_lost")


class Withholding(NamedTuple):
    """From ``at`` on so much was withheld of ``device`` ("n1/gpu_0"), in MB: all of it, and by whom it was used."""

    at: datetime
    device: str
    withheld_mb: int
    foreign_mb: int
    leftover_mb: int
    overuse_mb: int


def withheld_during(history: History, row: AllocationRow, events: Sequence[Event]) -> list[Withholding]:
    """What was withheld of each device that an allocation held, when it got it and as it changed; oldest first.

    ``events``: those of the allocation. Where nothing was withheld at its grant, nothing is told of that.
    """
    stretches = of_row(row)
    if stretches is None:
        stretches = of_events(
            row, [Entry(e.event_id, e.event, e.at, e.object_id, e.task_id, dict(e.fields)) for e in events]
        )
    several = [tuple(name.split("/", 1)) for name in (row.devices or "").split()]
    found: list[Withholding] = []
    with history.session() as session:
        for stretch in stretches:
            first = (stretch.node, stretch.device)
            for node, device in several if several[:1] == [first] else [first]:
                found += _of_device(session, history.pool, node, device, stretch.start, stretch.end)
    return sorted(found)


def _of_device(
    session: Session, pool: str, node: str, device: str, start: datetime, end: datetime | None
) -> Iterator[Withholding]:
    row = DeviceStateRow
    told = select(row).where(
        row.pool == pool, row.node == node, row.device == device, row.event.in_(("withheld", *_OVER))
    )
    before = session.scalars(told.where(row.at <= start).order_by(row.at.desc()).limit(1)).first()
    if before is not None and before.withheld_mb:
        yield _told(before, start)
    inside = told.where(row.at > start).order_by(row.at)
    for change in session.scalars(inside if end is None else inside.where(row.at < end)):
        if change.event == "withheld":
            yield _told(change, change.at)


def _told(row: DeviceStateRow, at: datetime) -> Withholding:
    parts = (row.withheld_mb, row.foreign_mb, row.leftover_mb, row.overuse_mb)
    return Withholding(at, f"{row.node}/{row.device}", *(part or 0 for part in parts))
