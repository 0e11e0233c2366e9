"""What waits, in pages, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

from celery_allocator.ledger import Ledger, Reservation
from celery_allocator.model import Allocation, ClusterState, Kind, Requirements
from celery_allocator.overview.outlook import Outlook
from celery_allocator.overview.reasons import Reason, fitting, why
from celery_allocator.overview.turns import in_turn


@dataclass(frozen=True)
class Match:
    """What to look for. ``text``: part of a task's name, its id or the allocation's id, in any case of letters."""

    text: str = ""
    tenant: str | None = None

    def __call__(self, allocation: Allocation) -> bool:
        """Whether that allocation is meant."""
        if self.tenant is not None and allocation.requirements.tenant != self.tenant:
            return False
        names = (allocation.task_name, allocation.task_id, allocation.allocation_id)
        return not self.text or any(self.text.lower() in name.lower() for name in names)


@dataclass(frozen=True)
class Waiting:
    """One allocation in line, and why it is not granted yet. ``kept``: the reservation, where it is its own."""

    allocation: Allocation
    reason: Reason
    kept: Reservation | None = None


@dataclass(frozen=True)
class Page:
    """A part of the line. ``total``: how many wait; ``matched``: how many of them were meant."""

    total: int
    matched: int
    rows: tuple[Waiting, ...]


def read_waiting(
    ledger: Ledger,
    cluster: ClusterState,
    outlook: Outlook | None = None,
    *,
    limit: int = 50,
    offset: int = 0,
    match: Match | None = None,
) -> Page:
    """``limit`` of those that wait (and are meant), from the ``offset``-th on in order of priority and arrival.

    Within these they stand by their place in line, which the turns of tenants change all the time.
    ``cluster``, ``outlook``: what reasons are taken from; without an outlook they tell of room alone. Raises
    :class:`~celery_allocator.errors.LedgerError`.
    """
    reasons = _Reasons(cluster, outlook or Outlook())
    if match is None or match == Match():
        found = ledger.queue(limit, offset)
        # More may have come since the snapshot.
        total = max(cluster.waiting, offset + len(found) if found else 0)
        return Page(total, total, reasons.of(found))
    total, matched, found = ledger.search(match.text, match.tenant or "", limit, offset)
    return Page(total, matched, reasons.of(found))


class _Reasons:
    """Those of one shape have room at the same places: that is looked for once."""

    def __init__(self, cluster: ClusterState, outlook: Outlook) -> None:
        self._cluster, self._outlook = cluster, outlook
        self._rooms: dict[tuple[Requirements, Kind], tuple[Reason, tuple[str, ...]]] = {}

    def of(self, allocations: tuple[Allocation, ...]) -> tuple[Waiting, ...]:
        """Each with its reason."""
        line = sorted(allocations, key=lambda a: a.queue_position)
        return tuple(Waiting(a, in_turn(*self._room(a), a, self._outlook), self._outlook.kept_for(a)) for a in line)

    def _room(self, a: Allocation) -> tuple[Reason, tuple[str, ...]]:
        asked = a.requirements
        bare = replace(asked, priority=0, tenant="", size="", expected_runtime_s=0)
        if (bare, a.kind) not in self._rooms:
            self._rooms[bare, a.kind] = (why(bare, a.kind, self._cluster), fitting(bare, a.kind, self._cluster))
        return self._rooms[bare, a.kind]
