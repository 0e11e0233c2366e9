"""What waits, in pages, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, ClusterState, Kind, Requirements
from celery_allocator.overview.reasons import Reason, why


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
    """One allocation in line, and why it is not granted yet."""

    allocation: Allocation
    reason: Reason


@dataclass(frozen=True)
class Page:
    """A part of the line. ``total``: how many wait; ``matched``: how many of them were meant."""

    total: int
    matched: int
    rows: tuple[Waiting, ...]


def read_waiting(
    ledger: Ledger, cluster: ClusterState, *, limit: int = 50, offset: int = 0, match: Match | None = None
) -> Page:
    """``limit`` of those that wait (and are meant), from the ``offset``-th on, in the order of the line.

    ``cluster``: the snapshot that reasons are taken from. Raises :class:`~celery_allocator.errors.LedgerError`.
    """
    if match is None or match == Match():
        found = ledger.queue(limit, offset)
        # More may have come since the snapshot.
        total = max(cluster.waiting, offset + len(found) if found else 0)
        return Page(total, total, _reasoned(found, cluster))
    total, matched, found = ledger.search(match.text, match.tenant or "", limit, offset)
    return Page(total, matched, _reasoned(found, cluster))


def _reasoned(allocations: tuple[Allocation, ...], cluster: ClusterState) -> tuple[Waiting, ...]:
    """Those of one shape wait for one reason: it is computed once."""

    @cache
    def reason(gpu_memory_mb: int, cpu_cores: int, ram_mb: int, kind: Kind) -> Reason:
        return why(Requirements(gpu_memory_mb, cpu_cores, ram_mb), kind, cluster)

    return tuple(Waiting(a, reason(a.gpu_memory_mb, a.requirements.cpu_cores, a.ram_mb, a.kind)) for a in allocations)
