"""Rules about waiting: how long it was, and how well it was foretold."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from celery_allocator.gate.evidence import Evidence
from celery_allocator.gate.registry import Measurement, rule
from celery_allocator.history.percentile import nearest_rank, ordered
from celery_allocator.history.window import utc

_COLUMNS = ("submitted_at", "eta_at", "wait_s", "queue_position", "estimated_start_at")


@rule("wait_p50", unit="s")
def wait_p50(evidence: Evidence) -> Measurement:
    """Median wait, from submit (or the ETA) to the first start.

    Counted as `wait_percentile` does.
    """
    return _wait(evidence, 50)


@rule("wait_p95", unit="s")
def wait_p95(evidence: Evidence) -> Measurement:
    """Wait that 95 of 100 tasks do not exceed, from submit (or the ETA) to the first start.

    Counted as `wait_percentile` does.
    """
    return _wait(evidence, 95)


@rule("wait_p99", unit="s")
def wait_p99(evidence: Evidence) -> Measurement:
    """Wait that 99 of 100 tasks do not exceed, from submit (or the ETA) to the first start.

    Counted as `wait_percentile` does.
    """
    return _wait(evidence, 99)


@rule("wait_percentile", unit="s")
def wait_percentile(evidence: Evidence, *, percent: float = 90) -> Measurement:
    """Wait that `percent` of 100 tasks do not exceed, from submit (or the ETA) to the first start.

    Of the tasks that first started in the window; the percentile is by nearest rank: of n waits in ascending order
    the one at rank ⌈percent/100 · n⌉. A task that still waits at the window's end counts with its wait so far once
    that is longer than the percentile of those that started: so what is stuck shows, and what has just come does not
    flatter.
    """
    return _wait(evidence, percent)


@rule("start_delay_p95", unit="s")
def start_delay_p95(evidence: Evidence) -> Measurement:
    """Time from the grant to the start that 95 of 100 tasks do not exceed: how fast workers take what they were given.

    Of the last grant of each task that last started in the window.
    """
    rows = evidence.allocations("granted_at", "started_at", by="started_at")
    delays = ordered(
        (utc(row.started_at) - utc(row.granted_at)).total_seconds()
        for row in rows
        if row.granted_at is not None and utc(row.granted_at) <= utc(row.started_at)
    )
    return Measurement(nearest_rank(delays, 95), len(delays))


@rule("estimate_error", unit="s")
def estimate_error(evidence: Evidence, *, percent: float = 50) -> Measurement:
    """Distance of the estimated from the real start: its median, or another percentile.

    Of the tasks that had to wait, were told an estimate, and first started in the window; by nearest rank.
    """
    errors = ordered(
        abs((started - utc(row.estimated_start_at)).total_seconds())
        for row, started in _started(evidence)
        if row.queue_position and row.estimated_start_at is not None
    )
    return Measurement(nearest_rank(errors, percent), len(errors))


@rule("estimate_coverage", unit="ratio")
def estimate_coverage(evidence: Evidence) -> Measurement:
    """Share of the tasks that had to wait that were told an estimated start.

    Of those that first started in the window. No run time of any task being known yet, none can be told.
    """
    told = waited = 0
    for row, _ in _started(evidence):
        if row.queue_position:
            waited += 1
            told += row.estimated_start_at is not None
    return Measurement(told / waited if waited else None, waited)


def _wait(evidence: Evidence, percent: float) -> Measurement:
    waits = ordered(row.wait_s for row, _ in _started(evidence))
    over = nearest_rank(waits, percent)
    still = [wait for wait in _so_far(evidence) if wait > (over or 0)]
    longest = f"{len(still)} still wait, the longest for {max(still):.1f} s" if still else ""
    every = ordered([*waits, *still])
    return Measurement(nearest_rank(every, percent), len(every), (longest,) if longest else ())


def _started(evidence: Evidence) -> Iterator[tuple[Any, datetime]]:
    """Allocations that first started in the window, and when."""
    # Who started first in the window was last started there, or later.
    for row in evidence.allocations(*_COLUMNS, by="started_at", or_later=True):
        if row.wait_s is not None:
            first = _ready(row) + timedelta(seconds=row.wait_s)
            if evidence.window.holds(first):
                yield row, first


def _so_far(evidence: Evidence) -> Iterator[float]:
    """Seconds that those have waited that have never started at the window's end."""
    end = evidence.window.end
    for row in evidence.alive_at_the_end(*_COLUMNS, "kind"):
        started = row.wait_s is not None and _ready(row) + timedelta(seconds=row.wait_s) < end
        if row.kind == "task" and not started and _ready(row) < end:
            yield (end - _ready(row)).total_seconds()


def _ready(row: Any) -> datetime:
    """When its wait began."""
    submitted = utc(row.submitted_at)
    return submitted if row.eta_at is None else max(submitted, utc(row.eta_at))
