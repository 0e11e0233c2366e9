"""Rules about waiting: how long it was, and how well it was foretold."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from celery_allocator.gate.evidence import Evidence
from celery_allocator.gate.registry import Measurement, rule
from celery_allocator.history.dates import Kept, kept
from celery_allocator.history.percentile import nearest_rank, ordered
from celery_allocator.history.window import utc

_COLUMNS = ("submitted_at", "eta_at", "wait_s", "queue_position", "estimated_start_at")
_DATES = (*_COLUMNS, "estimated_start_p90_at", "rearranged_at")


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


@rule("dates_covered", unit="ratio")
def dates_covered(evidence: Evidence) -> Measurement:
    """Share of the tasks that started by the date that they were promised for nine of ten cases (p90).

    Of those that had to wait, were told such a date at submit, were not put on hold, moved or given another priority
    meanwhile, and first started in the window. Dates that are true cover 0.9.
    """
    found = [promise.covered for promise in _promises(evidence) if promise.covered is not None]
    return Measurement(sum(found) / len(found) if found else None, len(found))


@rule("dates_error", unit="s")
def dates_error(evidence: Evidence, *, percent: float = 50) -> Measurement:
    """Distance of the promised (p50) from the real start: its median, or another percentile.

    Of the same tasks as `dates_covered`; by nearest rank. `estimate_error` also counts what was moved since.
    """
    errors = ordered(abs(promise.error_s) for promise in _promises(evidence))
    return Measurement(nearest_rank(errors, percent), len(errors))


@rule("tenant_wait", unit="s")
def tenant_wait(evidence: Evidence, *, percent: float = 95) -> Measurement:
    """Wait that `percent` of 100 tasks do not exceed, of the tenant for whom it is longest.

    Counted as `wait_percentile` does, for each tenant apart; those that name none are one. Tenants with fewer than five
    tasks are left out.
    """
    waits: dict[str, list[float]] = {}
    for row, _ in _started(evidence):
        waits.setdefault(row.tenant or "", []).append(row.wait_s)
    still: dict[str, list[float]] = {}
    for tenant, wait in _so_far(evidence):
        still.setdefault(tenant, []).append(wait)
    found: list[tuple[float, str]] = []
    samples = 0
    for tenant in waits.keys() | still.keys():
        every = _with_stuck(waits.get(tenant, []), still.get(tenant, []), percent)
        value = nearest_rank(every, percent)
        if len(every) >= _FEWEST and value is not None:
            found.append((value, tenant))
            samples += len(every)
    worst = sorted(found, key=lambda each: (-each[0], each[1]))
    told = tuple(f"{tenant or 'without a tenant'}: {value:.1f} s" for value, tenant in worst[:5])
    return Measurement(worst[0][0] if worst else None, samples, told)


#: Tasks of a tenant below which a percentile says nothing of it.
_FEWEST = 5


def _promises(evidence: Evidence) -> Iterator[Kept]:
    for row, _ in _started(evidence, _DATES):
        promise = kept(row)
        if promise is not None and row.queue_position:
            yield promise


def _with_stuck(waits: Iterable[float], still: Iterable[float], percent: float) -> array[float]:
    """Waits that ended, and those so far that are longer than their percentile."""
    ended = ordered(waits)
    over = nearest_rank(ended, percent) or 0
    return ordered([*ended, *(wait for wait in still if wait > over)])


def _wait(evidence: Evidence, percent: float) -> Measurement:
    waits = ordered(row.wait_s for row, _ in _started(evidence))
    over = nearest_rank(waits, percent)
    still = [wait for _, wait in _so_far(evidence) if wait > (over or 0)]
    longest = f"{len(still)} still wait, the longest for {max(still):.1f} s" if still else ""
    every = ordered([*waits, *still])
    return Measurement(nearest_rank(every, percent), len(every), (longest,) if longest else ())


def _started(evidence: Evidence, columns: Sequence[str] = _COLUMNS) -> Iterator[tuple[Any, datetime]]:
    """Allocations that first started in the window, and when."""
    # Who started first in the window was last started there, or later.
    for row in evidence.allocations(*columns, by="started_at", or_later=True):
        if row.wait_s is not None:
            first = _ready(row) + timedelta(seconds=row.wait_s)
            if evidence.window.holds(first):
                yield row, first


def _so_far(evidence: Evidence) -> Iterator[tuple[str, float]]:
    """Tenants, and seconds that those have waited that have never started at the window's end."""
    end = evidence.window.end
    for row in evidence.alive_at_the_end(*_COLUMNS, "kind"):
        started = row.wait_s is not None and _ready(row) + timedelta(seconds=row.wait_s) < end
        if row.kind == "task" and not started and _ready(row) < end:
            yield row.tenant or "", (end - _ready(row)).total_seconds()


def _ready(row: Any) -> datetime:
    """When its wait began."""
    submitted = utc(row.submitted_at)
    return submitted if row.eta_at is None else max(submitted, utc(row.eta_at))
