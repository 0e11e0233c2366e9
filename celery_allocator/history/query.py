"""Reading the history: allocations that match, what happened to them, what was held when. Nothing is kept in memory.

Every query is one statement, so that it sees one state of the database, whoever writes meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from celery_allocator.errors import HistoryQueryError
from celery_allocator.history.entry import Entry, moment, ordinal
from celery_allocator.history.models import AllocationRow, DeviceStateRow, Event, Gap
from celery_allocator.history.outcomes import KNOWN
from celery_allocator.history.store import History
from celery_allocator.history.stretches import Stretch, of_events, of_row

LIVE = "live"
#: What no database takes in a text: NUL, and halves of a character.
_UNKNOWN = re.compile("[\0\ud800-\udfff]")
#: Rows that are fetched at a time, and ids in one query.
_FETCH = 2000
_IDS = 500
#: What a report needs of an allocation.
_MEASURED = (
    *("allocation_id", "task_name", "tenant", "gpu_memory_mb", "gpu_count", "cpu_cores", "submitted_at", "eta_at"),
    *("ram_mb", "peak_ram_mb", "cpu_cores_used", "affinity", "grown", "overuse_gpu_memory_mb", "overuse_ram_mb"),
    *("estimated_start_at", "estimated_start_p90_at", "rearranged_at", "granted_at", "started_at", "ended_at", "state"),
    *("outcome", "node", "device", "devices", "grants"),
    *("losses", "wait_s", "run_s", "held_s", "peak_gpu_memory_mb", "last_event_id", "last_event_at"),
)


@dataclass(frozen=True)
class Filter:
    """Which allocations: all that is given must hold.

    ``name``: a glob pattern; ``device``: "node/device"; ``since`` and ``until``: something happened to it between them
    (``since`` included); ``outcome``: how it ended, or "live".
    """

    task: str | None = None
    name: str | None = None
    node: str | None = None
    device: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    outcome: str | None = None

    def __post_init__(self) -> None:
        for key in ("task", "name", "node", "device", "tenant", "outcome"):
            value = getattr(self, key)
            if value is not None and _UNKNOWN.search(value):
                raise HistoryQueryError(key, value, "has characters that no name has")
        if self.device is not None and not all(self.device.partition("/")):
            raise HistoryQueryError("device", self.device, "must be NODE/DEVICE, such as host1/gpu_0")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise HistoryQueryError("until", self.until.isoformat(), f"must be after since ({self.since.isoformat()})")


def allocations(history: History, chosen: Filter, limit: int) -> Sequence[AllocationRow]:
    """At most ``limit`` that match, newest submit first; those whose submit was missed come last.

    Raises :class:`HistoryQueryError` for an outcome that no allocation has.
    """
    query = _matching(history.pool, chosen).order_by(
        AllocationRow.submitted_at.desc().nulls_last(),
        AllocationRow.last_event_at.desc(),
        AllocationRow.allocation_id,
    )
    with history.session() as session:
        _check_outcome(session, history.pool, chosen.outcome)
        if chosen.name is None:
            return session.scalars(query.limit(limit)).all()
        # LIKE knows no sets, and on SQLite no case: the pattern's own rules decide.
        pattern = chosen.name
        with session.scalars(query.execution_options(yield_per=_FETCH)) as rows:
            return list(islice((row for row in rows if fnmatchcase(row.task_name, pattern)), limit))


class GapBetween(NamedTuple):
    """A gap, and when the entries on either side of it were written."""

    between: tuple[datetime, datetime]
    entries: int | None
    first_event_id: str
    last_event_id: str
    reason: str


def gaps(history: History, since: datetime | None, until: datetime | None) -> list[GapBetween]:
    """Where entries are missing in that time, oldest first."""
    found = []
    for gap in history.gaps():
        first, last = _between(gap)
        if (until is None or first < until) and (since is None or last >= since):
            found.append(GapBetween((first, last), gap.entries, gap.first_event_id, gap.last_event_id, gap.reason))
    return found


def _between(gap: Gap) -> tuple[datetime, datetime]:
    first, last = (moment(name.partition("-")[0]) for name in (gap.first_event_id, gap.last_event_id))
    first = first or datetime(1970, 1, 1, tzinfo=timezone.utc)
    return first, max(first, last or first)


@dataclass(frozen=True)
class Device:
    """What is known of a device: its memory (MB; ``None``: not told), and whether a worker serves it."""

    memory_mb: int | None
    serving: bool


def devices(history: History) -> dict[tuple[str, str], Device]:
    """Every device that was heard of, by node and device."""
    row = DeviceStateRow
    query = select(row.node, row.device, row.memory_mb, row.state).where(row.pool == history.pool).order_by(row.at)
    found: dict[tuple[str, str], Device] = {}
    with history.session() as session:
        for node, device, memory_mb, state in session.execute(query.execution_options(yield_per=_FETCH)):
            known = found.get((node, device), Device(None, serving=False))
            serving = state == "serving" if state in ("serving", "closing", "idle") else known.serving
            found[node, device] = Device(known.memory_mb if memory_mb is None else memory_mb, serving)
    return found


def measured(history: History, since: datetime, until: datetime) -> Iterator[tuple[Any, list[Stretch]]]:
    """Every allocation that had begun before ``until`` and had not ended before ``since``, and when it held something.

    Its row has the columns of :class:`AllocationRow` that a report needs.
    """
    columns = [getattr(AllocationRow, name) for name in _MEASURED]
    query = select(*columns).where(
        AllocationRow.pool == history.pool,
        or_(AllocationRow.ended_at.is_(None), AllocationRow.ended_at >= since),
        # Where its submit was missed, only its grants tell when it began, and not all of them stand in the row.
        or_(AllocationRow.submitted_at < until, AllocationRow.submitted_at.is_(None)),
    )
    with history.session() as session, session.execute(query.execution_options(yield_per=_FETCH)) as result:
        for rows in result.partitions():
            told = {row.allocation_id: of_row(row) for row in rows}
            replayed = _events(session, history.pool, [name for name, known in told.items() if known is None])
            for row in rows:
                known = told[row.allocation_id]
                if known is None:
                    # What came after this statement began is not for this report.
                    last = ordinal(row.last_event_id)
                    entries = replayed.get(row.allocation_id, [])
                    known = of_events(row, [entry for entry in entries if ordinal(entry.event_id) <= last])
                if _began(row, known) < until:
                    yield row, known


def _began(row: Any, stretches: Sequence[Stretch]) -> datetime:
    """The first that is known of it."""
    told: list[datetime | None] = [row.submitted_at]
    if row.submitted_at is None:
        told = [row.granted_at, row.ended_at, row.last_event_at, *(stretch.start for stretch in stretches)]
    return min(at for at in told if at is not None)


def _events(session: Session, pool: str, ids: Sequence[str]) -> dict[str, list[Entry]]:
    """What happened to each of these, oldest first."""
    found: dict[str, list[Entry]] = {}
    for start in range(0, len(ids), _IDS):
        query = select(Event.event_id, Event.event, Event.at, Event.object_id, Event.task_id, Event.fields)
        query = query.where(Event.pool == pool, Event.object_id.in_(ids[start : start + _IDS]))
        for row in session.execute(query.order_by(Event.ordinal)):
            found.setdefault(row.object_id, []).append(Entry(*row))
    return found


def _matching(pool: str, chosen: Filter) -> Select[Any]:
    row = AllocationRow
    node, _, device = (chosen.device or "").partition("/")
    wanted: list[Any] = [row.pool == pool]
    for column, value in (
        (row.task_id, chosen.task),
        (row.node, chosen.node),
        (row.node, node or None),
        (row.device, device or None),
        (row.tenant, chosen.tenant),
    ):
        if value is not None:
            wanted.append(column == value)
    if chosen.name is not None:
        wanted.append(row.task_name.like(_like(chosen.name), escape="\\"))
    if chosen.since is not None:
        wanted.append(row.last_event_at >= chosen.since)
    if chosen.until is not None:
        wanted.append(func.coalesce(row.submitted_at, row.last_event_at) < chosen.until)
    if chosen.outcome is not None:
        wanted.append(row.ended_at.is_(None) if chosen.outcome == LIVE else row.outcome == chosen.outcome)
    return select(row).where(*wanted)


def _like(pattern: str) -> str:
    """A pattern for LIKE that matches all that the glob matches, and perhaps more."""
    plain, bracket, _ = pattern.partition("[")
    for sign in "\\%_":
        plain = plain.replace(sign, "\\" + sign)
    return plain.replace("*", "%").replace("?", "_") + ("%" if bracket else "")


def _check_outcome(session: Session, pool: str, outcome: str | None) -> None:
    """A typing error must not look like good news."""
    if outcome is None or outcome == LIVE or outcome in KNOWN:
        return
    there = select(AllocationRow.outcome).where(AllocationRow.pool == pool, AllocationRow.outcome == outcome).limit(1)
    if session.scalar(there) is None:
        known = ", ".join(sorted(KNOWN))
        raise HistoryQueryError("outcome", outcome, f"no allocation has ended so; there are {LIVE}, {known}")
