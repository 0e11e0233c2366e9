"""From one look to the values of gauges: who holds what, what is kept for whom, how true dates were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from celery_allocator.ledger import Accuracy, Reservation
from celery_allocator.metrics.value import OTHER, Value
from celery_allocator.model import TenantState

#: Tenants that have series of their own.
TENANTS = 20
#: What names no tenant. Prometheus takes an empty label for none.
NAMELESS = "(none)"
_MB = 2**20
RESERVATIONS = ("passed", "kept", "emptied")


def tenants(states: Iterable[TenantState]) -> Iterator[Value]:
    """Those that hold or wait for most; ties by name, so that the same ones have series at each scrape.

    All others together are ``other``: sums, and of their shares the largest. So are those that call themselves so.
    """
    taken = (OTHER, NAMELESS)
    ranked = sorted(states, key=lambda state: (state.name in taken, -(state.tasks + state.waiting), state.name))
    own = [state for state in ranked[:TENANTS] if state.name not in taken]
    rest = ranked[len(own) :]
    for state in own:
        name = state.name or NAMELESS
        yield from _tenant(name, [state])
        yield Value("tenant_weight", (name,), state.quota.weight)
    yield from _tenant(OTHER, rest)


def _tenant(name: str, states: list[TenantState]) -> Iterator[Value]:
    own = (name,)
    yield Value("tenant_gpu_memory_held_bytes", own, sum(state.gpu_memory_mb for state in states) * _MB)
    yield Value("tenant_cpu_cores_held", own, sum(state.cpu_cores for state in states))
    yield Value("tenant_ram_held_bytes", own, sum(state.ram_mb for state in states) * _MB)
    yield Value("tenant_allocations_held", own, sum(state.tasks for state in states))
    yield Value("tenant_waiting", own, sum(state.waiting for state in states))
    yield Value("tenant_share_ratio", own, max((state.share for state in states), default=0))


def reservation(kept: Reservation | None, at: float) -> Iterator[Value]:
    """What is kept for the first in line that does not fit. ``at``: now, by the ledger's clock (seconds)."""
    state = None
    if kept is not None:
        state = "passed" if kept.device is None else "emptied" if kept.starts_at is None else "kept"
    for each in RESERVATIONS:
        yield Value("reservation", (each,), float(state == each))
    yield Value("reservation_age_seconds", (), 0 if kept is None else max(0.0, at - kept.since))
    yield Value("reservation_passed", (), 0 if kept is None else kept.passed)


def dates(accuracy: Accuracy) -> Iterator[Value]:
    """By how much dates were off, where any was scored."""
    for rule, error in (("dates", accuracy.median_error_s), ("rule_of_thumb", accuracy.thumb_error_s)):
        if error is not None:
            yield Value("date_error_median_seconds", (rule,), error)
