"""The stretches of time in which an allocation held something: one per grant.

Almost every allocation is granted once, and its row says all. For the others the events are replayed through the fold
that made the row, so that both count alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from celery_allocator.history.entry import Entry
from celery_allocator.history.fold import Changes
from celery_allocator.history.outcomes import FAILURES, RETRY

#: States in which an allocation holds a device, cores and RAM.
HOLDING = ("granted", "running")
#: Times are in milliseconds; a float's last digit is none of it.
_SAME_S = 0.0005


class Stretch(NamedTuple):
    """From a grant to its give-back (``end``; ``None``: it still holds it). ``device`` is "" where it is not known."""

    start: datetime
    end: datetime | None
    #: When it began to run; ``None`` if it had not in this stretch.
    run_from: datetime | None
    node: str
    device: str
    #: Whether its run will be, or ought to be, repeated: it failed, was lost, given back or retried.
    lost: bool


def wasted(outcome: str | None) -> bool:
    """Whether the last run of an allocation with this outcome was for nothing."""
    return outcome in FAILURES or outcome == RETRY


def of_row(row: Any) -> list[Stretch] | None:
    """What the row alone tells: ``None`` if it takes the events."""
    if row.granted_at is None:
        return [] if row.held_s == 0 else None
    if row.ended_at is None:
        if row.held_s != 0:
            return None
        return [_last(row, None)] if row.state in HOLDING else []
    if abs(row.held_s - (row.ended_at - row.granted_at).total_seconds()) > _SAME_S:
        return None
    return [_last(row, row.ended_at)]


def of_events(row: Any, entries: Iterable[Entry]) -> list[Stretch]:
    """What its events tell, oldest first. Where none is kept any more: what can be said from the row."""
    found = list(_replayed(row, entries))
    if not found and row.held_s > 0 and row.granted_at is not None:
        return [_last(row, row.granted_at + timedelta(seconds=row.held_s))]
    return found


def _last(row: Any, end: datetime | None) -> Stretch:
    ran = row.started_at is not None and row.started_at >= row.granted_at
    return Stretch(
        row.granted_at, end, row.started_at if ran else None, row.node or "", row.device or "", wasted(row.outcome)
    )


def _replayed(row: Any, entries: Iterable[Entry]) -> Iterator[Stretch]:
    changes = Changes()
    record = None
    for entry in entries:
        held_s, state, granted_at, started_at, place = 0.0, "", None, None, ("", "")
        if record is not None:
            held_s, state, granted_at, started_at = (
                *(record.held_s, record.state),
                *(record.granted_at, record.started_at),
            )
            place = (record.node or "", record.device or "")
        changes.fold([entry])
        record = changes.allocations.get(row.allocation_id)
        if record is None or record.held_s <= held_s:
            continue
        lost = wasted(record.outcome) if record.ended_at is not None else True
        if state in HOLDING and granted_at is not None:
            yield Stretch(granted_at, entry.at, started_at if state == "running" else None, *place, lost)
        else:  # its grant was missed: the event told how long it ran
            start = entry.at - timedelta(seconds=record.held_s - held_s)
            yield Stretch(start, entry.at, start, record.node or "", record.device or "", lost)
    if record is not None and record.ended_at is None and record.state in HOLDING and record.granted_at is not None:
        ran = record.started_at if record.state == "running" else None
        yield Stretch(record.granted_at, None, ran, record.node or "", record.device or "", lost=False)
