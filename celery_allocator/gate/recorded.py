"""The history's tables as rules read them: row by row, so that the size of a window costs time and no memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from celery_allocator.gate.evidence import Event, stream_order
from celery_allocator.history.models import AllocationRow, Gap
from celery_allocator.history.models import Event as EventRow
from celery_allocator.history.store import History
from celery_allocator.model import Kind, Shape

#: Rows that are fetched at a time, and ids in one query.
_FETCH = 2000
_IDS = 500


class RecordedHistory:
    """One pool's history, as :class:`~celery_allocator.gate.evidence.Records`."""

    def __init__(self, history: History) -> None:
        self._history = history

    def allocations(self, columns: Sequence[str], *, by: str, start: datetime, end: datetime) -> Iterator[Any]:
        """Rows with these columns of the allocations whose time ``by`` lies from ``start`` to ``end``."""
        at = _column(by)
        chosen = {by: at, **{name: _column(name) for name in columns}}
        query = select(*chosen.values()).where(AllocationRow.pool == self._history.pool, at >= start, at < end)
        if by == "started_at":  # no index on it; what started then came before, and had its last event since
            query = query.where(AllocationRow.last_event_at >= start)
        return self._rows(query)

    def alive(self, columns: Sequence[str], at: datetime) -> Iterator[Any]:
        """Rows with these columns of the allocations submitted before ``at`` that had not ended then."""
        query = select(*(_column(name) for name in columns)).where(
            AllocationRow.pool == self._history.pool,
            AllocationRow.submitted_at < at,
            or_(AllocationRow.ended_at.is_(None), AllocationRow.ended_at >= at),
        )
        return self._rows(query)

    def events(
        self, names: Iterable[str], *, start: datetime | None, end: datetime, of: Sequence[str] | None = None
    ) -> Iterator[Event]:
        """Events of these names in the stream's order; ``of``: those of each of these objects in its order."""
        pool = self._history.pool
        query = (
            select(
                *(EventRow.event_id, EventRow.event, EventRow.at, EventRow.object_id, EventRow.fields),
                *(AllocationRow.task_name, AllocationRow.tenant, AllocationRow.gpu_memory_mb, AllocationRow.cpu_cores),
                *(AllocationRow.ram_mb, AllocationRow.kind, AllocationRow.gpu_count),
            )
            .outerjoin(
                AllocationRow, (AllocationRow.pool == pool) & (AllocationRow.allocation_id == EventRow.object_id)
            )
            .where(EventRow.pool == pool, EventRow.event.in_(tuple(names)), EventRow.at < end)
            .order_by(EventRow.ordinal)
        )
        if start is not None:
            query = query.where(EventRow.at >= start)
        queries = [query] if of is None else [query.where(EventRow.object_id.in_(ids)) for ids in _parts(of)]
        for one in queries:
            for row in self._rows(one):
                known = (row.task_name or "", row.tenant or "", _shape(row))
                yield Event(row.event_id, row.event, row.at, row.object_id, row.fields, *known)

    def count_events(self, start: datetime, end: datetime) -> int:
        """How many events there are of that time."""
        query = select(func.count()).where(EventRow.pool == self._history.pool, EventRow.at >= start, EventRow.at < end)
        with self._history.session() as session:
            return session.execute(query).scalar_one()

    def gaps(self) -> Iterator[tuple[datetime, datetime, int | None]]:
        """Between which moments events are missing, and how many, where that is known."""
        query = select(Gap.first_event_id, Gap.last_event_id, Gap.noticed_at, Gap.entries).where(
            Gap.pool == self._history.pool
        )
        for row in self._rows(query.order_by(Gap.noticed_at)):
            yield _at(row.first_event_id), max(_at(row.last_event_id), _at(row.first_event_id)), row.entries

    def _rows(self, query: Any) -> Iterator[Any]:
        with self._history.session() as session:
            yield from session.execute(query.execution_options(yield_per=_FETCH))


def _shape(row: Any) -> str:
    """As the event stream writes it; empty where it is not known."""
    if row.gpu_memory_mb is None:
        return ""
    kind = Kind.MANUAL if row.kind == Kind.MANUAL.value else Kind.TASK
    return str(Shape(row.gpu_memory_mb, row.cpu_cores or 0, row.ram_mb or 0, kind, row.gpu_count or 1))


def _column(name: str) -> InstrumentedAttribute[Any]:
    column: InstrumentedAttribute[Any] = getattr(AllocationRow, name)
    return column


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), _IDS):
        yield ids[at : at + _IDS]


def _at(event_id: str) -> datetime:
    """When an entry was written, as its id tells."""
    return datetime.fromtimestamp(stream_order(event_id)[0] / 1000, tz=timezone.utc)
