"""One waiting allocation explained: place by place what lacks there, who holds it, and until when perhaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from celery_allocator.ledger import Ledger, Reservation, Runtime
from celery_allocator.ledger.recommending import is_much, is_much_cores
from celery_allocator.model import NOTHING, Allocation, ClusterState, Kind, State, Withheld
from celery_allocator.overview.outlook import read_outlook
from celery_allocator.overview.reasons import Reason, lacking, places
from celery_allocator.overview.turns import why_waiting
from celery_allocator.overview.withholding import of_tasks

#: Name under which the ledger keeps the run times of all.
_ALL = "*"


@dataclass(frozen=True)
class Holder:
    """Who holds something of a place. ``ends_at``: seconds since the epoch, by the run times of its name (half of them
    are shorter; where it has run for longer, nine of ten) or the end of its TTL; ``None``: nobody knows.
    """

    allocation: Allocation
    ends_at: float | None


@dataclass(frozen=True)
class Place:
    """A device that takes such claims. ``lacks``: dimension → (needed, free) of what is too little; empty: it fits.

    ``withheld``, ``ram_withheld``: what is in use there, and of its node's RAM, and no claim accounts for.
    """

    device: str
    lacks: Mapping[str, tuple[int, int]]
    holders: tuple[Holder, ...]
    withheld: Withheld = NOTHING
    ram_withheld: Withheld = NOTHING


@dataclass(frozen=True)
class Explanation:
    """Why an allocation is not running; ``places`` by how little lacks there, for what waits in line.

    ``reservation``: what is kept for the first in line that does not fit, which may be another one. ``wasteful``: what
    it asks for much more of than runs of its name used: requirement → (asked for, the most that was used, suggested).
    """

    allocation: Allocation
    reason: Reason
    places: tuple[Place, ...]
    reservation: Reservation | None = None
    wasteful: Mapping[str, tuple[int, float, int]] = field(default_factory=dict)

    @property
    def is_first(self) -> bool:
        """Whether the reservation is its own."""
        return self.reservation is not None and self.reservation.allocation_id == self.allocation.allocation_id

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        a = self.allocation
        return {
            "allocation_id": a.allocation_id,
            "task_id": a.task_id,
            "name": a.task_name,
            "state": a.state.value,
            "requirements": a.requirements.as_dict(),
            "position": a.queue_position or None,
            "estimated_start_at": a.estimated_start_at,
            "estimated_start_p90_at": a.estimated_start_p90_at,
            "reason": asdict(self.reason),
            "reservation": None
            if self.reservation is None
            else {**asdict(self.reservation), "is_its_own": self.is_first},
            "wasteful": {
                name: {"asked": asked, "most": most, "suggested": suggested}
                for name, (asked, most, suggested) in self.wasteful.items()
            },
            "places": [
                {
                    "device": place.device,
                    "withheld": asdict(place.withheld),
                    "ram_withheld": asdict(place.ram_withheld),
                    "lacks": {name: {"needed": n, "free": f} for name, (n, f) in place.lacks.items()},
                    "holders": [
                        {
                            "allocation_id": holder.allocation.allocation_id,
                            "task_id": holder.allocation.task_id,
                            "name": holder.allocation.task_name,
                            "requirements": holder.allocation.requirements.as_dict(),
                            "since": holder.allocation.granted_at,
                            "ends_at": holder.ends_at,
                        }
                        for holder in place.holders
                    ],
                }
                for place in self.places
            ],
        }


def explain(ledger: Ledger, allocation: Allocation) -> Explanation:
    """Why that allocation is not running now. Raises :class:`~celery_allocator.errors.LedgerError`."""
    if allocation.state is not State.WAITING:
        excess = list(of_tasks(ledger.snapshot(), allocation)) if allocation.state is State.RUNNING else []
        return Explanation(allocation, _not_in_line(allocation, excess), ())
    cluster, outlook = ledger.snapshot(), read_outlook(ledger)
    reason = why_waiting(allocation, cluster, outlook)
    found = _places(allocation, cluster, ledger.held(), ledger.runtimes())
    kept = outlook.kept.reservation if outlook.kept else None
    return Explanation(allocation, reason, found, kept, _wasteful(ledger, allocation))


def _wasteful(ledger: Ledger, wanted: Allocation) -> dict[str, tuple[int, float, int]]:
    known = ledger.learned_of(wanted.task_name, wanted.requirements.size)
    found = {}
    for name, is_wasteful in (("gpu_memory_mb", is_much), ("cpu_cores", is_much_cores), ("ram_mb", is_much)):
        asked, usage = getattr(wanted.requirements, name), known.usage(name)
        if usage is not None and usage.suggested is not None and is_wasteful(asked, usage.suggested):
            found[name] = (asked, usage.most, usage.suggested)
    return found


def _not_in_line(a: Allocation, excess: Sequence[str]) -> Reason:
    texts = {
        State.DELAYED: "It does not wait for room yet: its time (ETA or countdown) lies ahead.",
        State.ON_HOLD: f"It is on hold, by {a.on_hold_by or 'an operator'}: it keeps its place and is not granted.",
        State.GRANTED: f"It is granted {a.place}, and its worker has not begun it yet.",
        State.RUNNING: " ".join([f"It runs on {a.place}.", *(f"It {said}." for said in excess)]),
    }
    return Reason(a.state.value, texts.get(a.state, "It has ended."))


def _places(
    wanted: Allocation, cluster: ClusterState, held: tuple[Allocation, ...], runtimes: tuple[Runtime, ...]
) -> tuple[Place, ...]:
    by_name = {(known.name, known.size): known for known in runtimes}
    found = []
    for node, device in places(wanted.requirements, wanted.kind, cluster):
        lacks = lacking(wanted.requirements, wanted.kind, node, device)
        # Cores and RAM are the node's, memory and slots the device's: whoever holds any of what lacks is in the way.
        of_node = bool(lacks.keys() & {"cpu_cores", "ram_mb"})
        holders = tuple(
            Holder(a, _ends_at(a, by_name, cluster.at))
            for a in held
            if a.node == node.node and (device.device_id in a.device_ids or of_node) and lacks
        )
        found.append(Place(device.key, lacks, holders, device.withheld, node.ram_withheld))
    return tuple(sorted(found, key=lambda place: len(place.lacks)))


def _ends_at(a: Allocation, runtimes: Mapping[tuple[str, str], Runtime], now: float) -> float | None:
    """By hand: as was said for it, or the end of its TTL. A task: as most of its name end that have run for so long, or
    as was said for it.
    """
    asked = a.requirements
    if a.kind is Kind.MANUAL:
        said = a.started_at + asked.expected_runtime_s if a.started_at and asked.expected_runtime_s else now
        return said if said > now and (a.expires_at is None or said < a.expires_at) else a.expires_at
    if a.started_at is None:
        return None
    names = ((a.task_name, asked.size), (a.task_name, ""), (_ALL, ""))
    known = next((runtimes[name] for name in names if name in runtimes), None)
    lengths = [known.p50_s, known.p90_s] if known is not None else []
    if asked.expected_runtime_s:
        lengths = [min(length, asked.expected_runtime_s) for length in lengths] or [float(asked.expected_runtime_s)]
    return next((a.started_at + length for length in lengths if a.started_at + length > now), None)
