"""Writes batches of entries into the history, each once, whatever was delivered twice.

A batch is one transaction. The event's id is the key: an entry that is there already changes nothing; only entries that
are new are folded into the other tables. The caller sees to it that one recorder at a time writes (``turns.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.orm import aliased

from celery_allocator.history.entry import Entry, ordinal
from celery_allocator.history.fold import Changes, concerns_allocation
from celery_allocator.history.models import (
    AllocationRow,
    Cursor,
    DeviceStateRow,
    Event,
    Gap,
    NodeStateRow,
    OperatorAction,
)
from celery_allocator.history.records import COLUMNS, AllocationRecord, StateRecord

#: Values of an allocation's columns, in the order of :data:`COLUMNS`.
values_of = attrgetter(*COLUMNS)


@dataclass(frozen=True)
class Hole:
    """Entries that cannot be read any more; see :class:`~celery_allocator.history.models.Gap`."""

    first_event_id: str
    last_event_id: str
    entries: int | None
    reason: str


class Dialect(Protocol):
    """What is done otherwise on each database, for speed."""

    def known(self, connection: Connection, pool: str, event_ids: Sequence[str]) -> set[str]:
        """Which of these events are there."""

    def load(self, connection: Connection, pool: str, ids: Sequence[str]) -> Iterable[Sequence[Any]]:
        """The rows of these allocations, each as its values in the order of ``COLUMNS``."""

    def add_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of events, which are not there."""

    def add_allocations(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of allocations (the pool, then ``COLUMNS``), which are not there."""

    def change_allocations(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Replace rows of allocations, which are there."""


#: What a row's age is counted from.
_AGES = (
    (Event, "at"),
    (AllocationRow, "last_event_at"),
    (NodeStateRow, "at"),
    (DeviceStateRow, "at"),
    (OperatorAction, "at"),
    (Gap, "noticed_at"),
)

#: Columns of the rows that :meth:`Dialect.add_events` takes.
EVENT_COLUMNS = ("pool", "event_id", "ordinal", "event", "at", "object_id", "task_id", "fields")


class Writer:
    """Writes one pool's history on one connection."""

    def __init__(self, connection: Connection, pool: str, dialect: Dialect, recorder: str) -> None:
        self._connection = connection
        self._pool = pool
        self._dialect = dialect
        self._recorder = recorder

    def last_event_id(self) -> str | None:
        """The last entry that was written; ``None`` before the first."""
        with self._connection.begin():
            return self._connection.scalar(select(Cursor.last_event_id).where(Cursor.pool == self._pool))

    def write(
        self, entries: Sequence[Entry], now: datetime, *, lost: Sequence[str] = (), oldest: datetime | None = None
    ) -> tuple[int, Hole | None]:
        """Write a batch, in the order of the stream; returns how many were new, and what was found to be missing.

        ``lost``: ids of entries that were delivered before, and whose content is gone: a hole, unless they had been
        written. ``oldest``: what happened before that is not kept, and so not written again either.
        """
        with self._connection.begin():
            ids = [entry.event_id for entry in entries]
            known = self._dialect.known(self._connection, self._pool, [*ids, *lost])
            missing = [event_id for event_id in lost if event_id not in known]
            hole = Hole(missing[0], missing[-1], len(missing), "trimmed after they were delivered") if missing else None
            if hole is not None:
                self._note(hole, now)
            new = []
            for entry in entries:
                if entry.event_id not in known and (oldest is None or entry.at >= oldest):
                    known.add(entry.event_id)
                    new.append(entry)
            if new:
                self._add(new)
            if entries:
                self._advance(entries[-1].event_id, len(new), now)
        return len(new), hole

    def note(self, hole: Hole, now: datetime) -> None:
        """Write down that entries are missing. What is known of a hole that begins at the same entry is replaced."""
        with self._connection.begin():
            self._note(hole, now)

    def delete_before(self, limit: datetime, rows: int) -> int:
        """Delete at most ``rows`` rows of each table that tell of a time before ``limit``; returns how many.

        An allocation goes with the last event that tells of it. The last that told a device's memory stays: a node says
        it once, and reports count in shares of it.
        """
        deleted = 0
        for model, at in _AGES:
            with self._connection.begin():
                table: Table = model.__table__  # type: ignore[assignment]
                key = list(table.primary_key.columns)
                old = select(*key).where(table.c.pool == self._pool, table.c[at] < limit).order_by(table.c[at])
                if model is DeviceStateRow:
                    old = old.where(_known_otherwise())
                chosen = self._connection.execute(old.limit(rows)).all()
                if chosen:
                    gone = delete(table).where(and_(*(column == bindparam(f"k{i}") for i, column in enumerate(key))))
                    self._connection.execute(gone, [{f"k{i}": part for i, part in enumerate(row)} for row in chosen])
                deleted += len(chosen)
        return deleted

    def _note(self, hole: Hole, now: datetime) -> None:
        same = (Gap.pool == self._pool, Gap.first_event_id == hole.first_event_id)
        self._connection.execute(delete(Gap).where(*same))
        self._connection.execute(insert(Gap).values(pool=self._pool, noticed_at=now, **vars(hole)))

    def _add(self, new: Sequence[Entry]) -> None:
        pool, connection = self._pool, self._connection
        concerned = list(dict.fromkeys(entry.object_id for entry in new if concerns_allocation(entry)))
        before = {row[0]: AllocationRecord(*row) for row in self._dialect.load(connection, pool, concerned)}
        there = set(before)
        changes = Changes(before).fold(new)
        self._dialect.add_events(
            connection,
            [(pool, e.event_id, ordinal(e.event_id), e.event, e.at, e.object_id, e.task_id, e.fields) for e in new],
        )
        rows = [(name in there, (pool, *values_of(record))) for name, record in changes.allocations.items()]
        for change, is_there in ((self._dialect.add_allocations, False), (self._dialect.change_allocations, True)):
            chosen = [row for known, row in rows if known is is_there]
            if chosen:
                change(connection, chosen)
        for model, states in (
            (NodeStateRow, [s for s in changes.states if s.device is None]),
            (DeviceStateRow, [s for s in changes.states if s.device is not None]),
        ):
            if states:
                table: Table = model.__table__  # type: ignore[assignment]
                connection.execute(insert(table), [_state_row(pool, table, state) for state in states])
        if changes.actions:
            connection.execute(insert(OperatorAction), [_action_row(pool, entry) for entry in changes.actions])

    def _advance(self, event_id: str, recorded: int, now: datetime) -> None:
        told = {"last_event_id": event_id, "recorded_at": now, "recorder": self._recorder}
        changed = self._connection.execute(
            update(Cursor).where(Cursor.pool == self._pool).values(recorded=Cursor.recorded + recorded, **told)
        )
        if changed.rowcount == 0:
            self._connection.execute(insert(Cursor).values(pool=self._pool, recorded=recorded, **told))


def _known_otherwise() -> ColumnElement[bool]:
    """Whether a row of a device does not tell its memory, or a later one does."""
    later = aliased(DeviceStateRow)
    same = (later.pool == DeviceStateRow.pool, later.node == DeviceStateRow.node, later.device == DeviceStateRow.device)
    told = select(later.at).where(*same, later.memory_mb.is_not(None), later.at > DeviceStateRow.at)
    return or_(DeviceStateRow.memory_mb.is_(None), told.exists())


class AnyDatabase:
    """The dialect in SQLAlchemy's own terms: for SQLite."""

    #: Names in one query; SQLite takes 32766 at most.
    _CHUNK = 5000

    def known(self, connection: Connection, pool: str, event_ids: Sequence[str]) -> set[str]:
        """Which of these events are there."""
        found: set[str] = set()
        for chunk in _chunks(event_ids, self._CHUNK):
            query = select(Event.event_id).where(Event.pool == pool, Event.event_id.in_(chunk))
            found.update(connection.scalars(query))
        return found

    def load(self, connection: Connection, pool: str, ids: Sequence[str]) -> Iterable[Sequence[Any]]:
        """Rows of allocations."""
        table = AllocationRow.__table__
        for chunk in _chunks(ids, self._CHUNK):
            chosen = [table.c[name] for name in COLUMNS]
            query = select(*chosen).where(AllocationRow.pool == pool, AllocationRow.allocation_id.in_(chunk))
            yield from connection.execute(query)

    def add_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of events."""
        connection.execute(insert(Event), [dict(zip(EVENT_COLUMNS, row, strict=True)) for row in rows])

    def add_allocations(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of allocations."""
        connection.execute(insert(AllocationRow), [_allocation_row(row) for row in rows])

    def change_allocations(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Replace rows of allocations."""
        for chunk in _chunks([row[1] for row in rows], self._CHUNK):
            same = (AllocationRow.pool == rows[0][0], AllocationRow.allocation_id.in_(chunk))
            connection.execute(delete(AllocationRow).where(*same))
        self.add_allocations(connection, rows)


def _chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _allocation_row(row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("pool", *COLUMNS), row, strict=True))


def _state_row(pool: str, table: Table, state: StateRecord) -> Mapping[str, Any]:
    told = vars(state)
    return {"pool": pool, **{name: told.get(name) for name in table.c.keys() if name != "pool"}}  # noqa: SIM118


def _action_row(pool: str, entry: Entry) -> Mapping[str, Any]:
    fields = entry.fields
    return {
        "pool": pool,
        "event_id": entry.event_id,
        "entry": entry.number("entry", 2**63),
        "at": entry.at,
        "object": entry.object_id,
        **{name: fields.get(name, "") for name in ("action", "actor", "reason", "state")},
        "before": fields.get("before"),
        "after": fields.get("after"),
    }
