"""What the ledger says of turns and of times to come: tenants, what is kept for whom, how true its dates were."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.errors import AllocationNotFound
from celery_allocator.ledger import Accuracy, Ledger, Patience, Reservation
from celery_allocator.model import Allocation, Shape, State, TenantState


@dataclass(frozen=True)
class Kept:
    """The reservation, and for whom it is: the first in line that does not fit."""

    reservation: Reservation
    holder: Allocation

    @property
    def device(self) -> str | None:
        """node/device that is kept; ``None``: nothing is yet, it is only counted how often its holder was passed."""
        return self.reservation.device

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        holder = self.holder
        return {**asdict(self.reservation), "task_id": holder.task_id, "name": holder.task_name}


@dataclass(frozen=True)
class Outlook:
    """``accuracy``: of the dates told so far. ``kept``: ``None`` where nobody waits that does not fit.

    ``patience``: who waits for a device where an affinity is loaded, though another one has room.
    """

    tenants: tuple[TenantState, ...] = ()
    kept: Kept | None = None
    accuracy: Accuracy | None = None
    patience: tuple[Patience, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one tenant, or one with a weight or caps of its own."""
        return len(self.tenants) > 1 or any(tenant.by for tenant in self.tenants)

    @property
    def scored(self) -> Accuracy | None:
        """The accuracy, where at least one date was scored."""
        return self.accuracy if self.accuracy is not None and self.accuracy.scored else None

    def tenant(self, name: str) -> TenantState | None:
        """One tenant; ``None`` for one that holds nothing, does not wait and has no quota."""
        return next((tenant for tenant in self.tenants if tenant.name == name), None)

    def kept_for(self, allocation: Allocation) -> Reservation | None:
        """The reservation, if it is that allocation's."""
        kept = self.kept
        return kept.reservation if kept is not None and kept.holder.allocation_id == allocation.allocation_id else None

    def patience_of(self, allocation: Allocation) -> Patience | None:
        """Until when that allocation waits at most for a device where its affinity is loaded; ``None``: it does not."""
        shape, tenant = Shape.of(allocation.requirements, allocation.kind), allocation.requirements.tenant
        return next((some for some in self.patience if some.shape == shape and some.tenant == tenant), None)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {
            "tenants": [tenant.as_dict() for tenant in self.tenants],
            "reservation": None if self.kept is None else self.kept.as_dict(),
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "affinity": [
                {"affinity": some.shape.asked["affinity"], "tenant": some.tenant, "until": some.until}
                for some in self.patience
            ],
        }


def read_outlook(ledger: Ledger) -> Outlook:
    """Four small reads, and one more where something is kept. Raises :class:`~celery_allocator.errors.LedgerError`."""
    return Outlook(ledger.tenants(), _kept(ledger), ledger.accuracy(), ledger.patience())


def _kept(ledger: Ledger) -> Kept | None:
    found = ledger.reservation()
    if found is None:
        return None
    try:
        holder = ledger.get(found.allocation_id)
    except AllocationNotFound:
        return None
    # It was granted, cancelled or put on hold between the two reads.
    return Kept(found, holder) if holder.state is State.WAITING else None
