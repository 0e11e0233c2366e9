"""Which allocations that have not been granted are meant: by name, tenant, state, age and shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from celery_allocator.errors import LabelError
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, State

#: States before the grant. From where an allocation comes from to where it goes to, so that none slips by a reader.
NOT_GRANTED = (State.ON_HOLD, State.DELAYED, State.WAITING)
#: Allocations per read, and how many of these are read twice: the line may move up between two reads.
_PAGE, _OVERLAP = 500, 100
_SHAPE = re.compile(r"(\d{1,9}|\*):(\d{1,9}|\*):(\d{1,9}|\*)")


@dataclass(frozen=True)
class Selection:
    """What is left out does not matter.

    ``name``: a glob pattern for the task's name, capital letters and small ones told apart. ``tenant``: ``""`` is
    nobody's. ``older_than_s``: seconds since it was submitted, by the ledger's clock. ``on_hold_by``: who put it on
    hold. ``shape``: ``GPU_MEMORY_MB:CPU_CORES:RAM_MB``, each a number or ``*``. Raises :class:`LabelError` for what can
    match nothing.
    """

    name: str | None = None
    tenant: str | None = None
    states: tuple[State, ...] = NOT_GRANTED
    older_than_s: float | None = None
    shape: str | None = None
    on_hold_by: str | None = None

    def __post_init__(self) -> None:
        if wrong := [state for state in self.states if state not in NOT_GRANTED]:
            known = ", ".join(state.value for state in NOT_GRANTED)
            raise LabelError("states", getattr(wrong[0], "value", wrong[0]), f"must be of {known}")
        if self.shape is not None and not _SHAPE.fullmatch(self.shape):
            raise LabelError("shape", self.shape, "must be GPU_MEMORY_MB:CPU_CORES:RAM_MB, each a number or *")
        if self.older_than_s is not None and not self.older_than_s >= 0:
            raise LabelError("older_than_s", str(self.older_than_s), "must be a number of seconds, 0 or more")

    def means(self, allocation: Allocation, now: float) -> bool:
        """Whether ``allocation`` is one of these. ``now``: seconds since the epoch on the ledger's clock."""
        asked = allocation.requirements
        return (
            allocation.state in self.states
            and (self.name is None or fnmatchcase(allocation.task_name, self.name))
            and (self.tenant is None or asked.tenant == self.tenant)
            and (self.on_hold_by is None or allocation.on_hold_by == self.on_hold_by)
            and (self.older_than_s is None or now - allocation.submitted_at > self.older_than_s)
            and (self.shape is None or _fits(self.shape, (asked.gpu_memory_mb, asked.cpu_cores, asked.ram_mb)))
        )


def select(ledger: Ledger, selection: Selection) -> Iterator[Allocation]:
    """Those that are meant, each once: on hold, then delayed, then in line, in their order. Reads in pages."""
    now = ledger.server_time()
    return (found for found in not_granted(ledger, selection.states) if selection.means(found, now))


def not_granted(ledger: Ledger, states: tuple[State, ...] = NOT_GRANTED) -> Iterator[Allocation]:
    """All that has not been granted, each once, in pages; whatever moves up meanwhile is met as well."""
    reads = {State.ON_HOLD: ledger.on_hold, State.DELAYED: ledger.delayed, State.WAITING: ledger.queue}
    seen: set[str] = set()
    for state in (state for state in NOT_GRANTED if state in states):
        offset = 0
        while page := reads[state](limit=_PAGE, offset=offset):
            for allocation in page:
                if allocation.allocation_id not in seen:
                    seen.add(allocation.allocation_id)
                    yield allocation
            if len(page) < _PAGE:
                break
            offset += _PAGE - _OVERLAP


def _fits(shape: str, amounts: tuple[int, ...]) -> bool:
    return all(part in ("*", str(amount)) for part, amount in zip(shape.split(":"), amounts, strict=True))
