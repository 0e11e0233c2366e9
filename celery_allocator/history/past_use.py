"""What runs used, as the event stream told it: for a ledger that has forgotten what it had learned."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sqlalchemy import and_, or_, select

from celery_allocator.history.entry import whole
from celery_allocator.history.models import AllocationRow, Event
from celery_allocator.history.store import History
from celery_allocator.model import Peaks

#: Runs of each name that are given back: what came before weighs next to nothing (``PEAK_DECAY`` in ``_peaks.lua``),
#: and the most that was seen is of two windows of 500.
MOST_RUNS = 1000


@dataclass
class PastUse:
    """The newest successes of a task name, oldest first, and what the last of them asked for."""

    declared: Peaks
    runs: deque[Peaks] = field(default_factory=lambda: deque(maxlen=MOST_RUNS))


def past_use(history: History) -> dict[str, PastUse]:
    """By task name."""
    row = AllocationRow
    query = (
        select(row.task_name, row.gpu_memory_mb, row.ram_mb, row.cpu_cores, Event.fields)
        .join(Event, and_(Event.pool == row.pool, Event.object_id == row.allocation_id, Event.event == "released"))
        .where(row.pool == history.pool, row.outcome == "success")
        .where(or_(row.peak_ram_mb.is_not(None), row.peak_gpu_memory_mb.is_not(None)))
        .order_by(row.ended_at, Event.ordinal)
    )
    found: dict[str, PastUse] = {}
    with history.session() as session:
        for name, gpu, ram, cores, told in session.execute(query.execution_options(yield_per=5000)):
            if told.get("outcome") != "success":  # an earlier end, undone since
                continue
            milli = whole(told.get("cpu_milli"))
            peaks = Peaks(
                whole(told.get("peak_gpu_mb")),
                whole(told.get("peak_ram_mb")),
                None if milli is None else milli / 1000,
            )
            past = found.setdefault(name, PastUse(Peaks()))
            past.declared = Peaks(gpu, ram, cores)
            past.runs.append(peaks)
    return found
