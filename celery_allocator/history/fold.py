"""From events to rows: a pure function, so that any way of cutting the stream into batches gives the same rows.

Every event is given once, in the order of the stream. Where entries were missed, or the history began in the middle of
an allocation's life, its row says as much as the events that there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime

from celery_allocator.history.entry import Entry, whole
from celery_allocator.history.records import AllocationRecord, StateRecord
from celery_allocator.model import Shape

logger = logging.getLogger(__name__)

_HOLDING = ("granted", "running")


@dataclass
class Changes:
    """What a batch of events changes. ``allocations`` holds the rows there were before, changed, and new ones."""

    allocations: MutableMapping[str, AllocationRecord] = field(default_factory=dict)
    states: list[StateRecord] = field(default_factory=list)
    actions: list[Entry] = field(default_factory=list)

    def fold(self, entries: Iterable[Entry]) -> Changes:
        """Apply events, each once and in order; returns itself."""
        for entry in entries:
            try:
                self._apply(entry)
            except Exception:  # a damaged entry must not stop all that come after it
                logger.exception("history: entry %s cannot be understood; it is kept as an event only", entry.event_id)
        return self

    def _apply(self, entry: Entry) -> None:
        change = _LIFE.get(entry.event)
        if change is not None:
            if not entry.object_id:
                return
            record = self.allocations.get(entry.object_id)
            if record is None:
                if entry.event in _LATER:  # nothing else is known of it: its row is gone, or was never written
                    return
                record = AllocationRecord(entry.object_id, entry.event_id, entry.at)
                self.allocations[entry.object_id] = record
            _met(record, entry)
            change(record, entry)
        elif entry.event in _STATES:
            self._state(entry)
        elif entry.event == "operated":
            self.actions.append(entry)

    def _state(self, entry: Entry) -> None:
        # What a worker did is about the device it serves; all else, about a node or a device by its own name.
        target = entry.fields.get("device", "") if entry.event in _OF_WORKERS else entry.object_id
        node, _, device = target.partition("/")
        if not node or (entry.event in _OF_WORKERS and not device):
            return
        self.states.append(
            StateRecord(
                entry.event_id,
                entry.at,
                entry.event,
                node,
                device or None,
                _STATES[entry.event],
                worker=entry.object_id if entry.event in _OF_WORKERS else None,
                slots=entry.number("slots"),
                cpu_cores=entry.number("cores"),
                ram_mb=entry.number("ram_mb"),
                devices=entry.number("devices"),
                **{name: entry.number(name) for name in _WITHHELD if entry.event == "withheld"},
            )
        )
        if entry.event == "node":
            for told in entry.fields.get("gpu_memory_mb", "").split():
                name, _, memory = told.rpartition(":")
                if name:
                    online = StateRecord(
                        entry.event_id, entry.at, "node", node, name, "online", memory_mb=whole(memory)
                    )
                    self.states.append(online)


def concerns_allocation(entry: Entry) -> bool:
    """Whether the entry changes the row of an allocation."""
    return entry.event in _LIFE and bool(entry.object_id)


def _met(record: AllocationRecord, entry: Entry) -> None:
    """What every event of an allocation tells."""
    told = entry.fields
    record.last_event_id, record.last_event_at = entry.event_id, entry.at
    record.task_id = entry.task_id or record.task_id
    record.task_name = told.get("name") or record.task_name
    shape = Shape.parse(told.get("shape", ""))
    if shape is not None:
        record.gpu_memory_mb, record.cpu_cores, record.ram_mb = shape.gpu_memory_mb, shape.cpu_cores, shape.ram_mb
        record.kind, record.gpu_count = shape.kind.value, shape.gpu_count
        record.more = shape.more or None
    if "new" in told:
        record.submitted_at = entry.at
        record.priority = entry.number("priority")
        record.strategy = told.get("strategy") or None
        record.tenant = told.get("tenant", "")
        record.expires_at = entry.time("expires")
        record.queue_position = entry.number("position")
        record.estimated_start_at = entry.time("estimate")
        record.estimated_start_p90_at = entry.time("estimate_p90")


def _placed(record: AllocationRecord, entry: Entry) -> None:
    node, _, device = entry.fields.get("device", "").partition("/")
    if device:
        record.node, record.device = node, device
    token = entry.number("token", 2**63)
    record.token = record.token if token is None else token


def _lives(record: AllocationRecord, state: str) -> None:
    record.state, record.ended_at, record.outcome = state, None, None


def _give_back(record: AllocationRecord, entry: Entry) -> None:
    """What it held and ran since its last grant and start counts; after that it holds nothing."""
    # Where its grant or start was missed, the event of its end may still say how long it ran.
    told = (entry.number("held_ms", 2**53) or 0) / 1000
    held, ran = told, told
    if record.state in _HOLDING and record.granted_at is not None:
        held = _since(record.granted_at, entry.at)
    if record.state == "running" and record.started_at is not None:
        ran = _since(record.started_at, entry.at)
    record.held_s += held
    record.run_s += ran


def _since(then: datetime, now: datetime) -> float:
    return max(0.0, (now - then).total_seconds())


def _starts(record: AllocationRecord, at: datetime) -> None:
    _lives(record, "running")
    record.started_at = at
    if record.wait_s is None and record.submitted_at is not None:
        ready = max(record.submitted_at, record.eta_at or record.submitted_at)
        record.wait_s = _since(ready, at)


def _delayed(record: AllocationRecord, entry: Entry) -> None:
    _lives(record, "delayed")
    record.eta_at = entry.time("eta") or record.eta_at


def _waiting(record: AllocationRecord, entry: Entry) -> None:
    _give_back(record, entry)
    _lives(record, "waiting")


def _granted(record: AllocationRecord, entry: Entry) -> None:
    _give_back(record, entry)
    _placed(record, entry)
    _lives(record, "granted")
    record.cores, record.devices = entry.fields.get("cores", ""), entry.fields.get("devices") or None
    record.worker, record.started_at = None, None
    record.granted_at = entry.at
    record.affinity = entry.fields.get("warm") or None
    record.grants += 1
    if record.kind == "manual":  # held by whoever asked for it, from now on
        _starts(record, entry.at)


def _started(record: AllocationRecord, entry: Entry) -> None:
    _placed(record, entry)
    record.worker = entry.fields.get("worker") or None
    _starts(record, entry.at)


def _ends(record: AllocationRecord, entry: Entry, outcome: str) -> None:
    _give_back(record, entry)
    record.state, record.outcome, record.ended_at = "released", outcome, entry.at


def _released(record: AllocationRecord, entry: Entry) -> None:
    _placed(record, entry)
    _ends(record, entry, entry.fields.get("outcome") or "released")
    record.peak_gpu_memory_mb = _largest(record.peak_gpu_memory_mb, entry.number("peak_gpu_mb"))
    record.peak_ram_mb = _largest(record.peak_ram_mb, entry.number("peak_ram_mb"))
    milli = entry.number("cpu_milli")
    record.cpu_cores_used = record.cpu_cores_used if milli is None else milli / 1000


def _lost(record: AllocationRecord, entry: Entry) -> None:
    _placed(record, entry)
    record.losses += 1
    if entry.fields.get("again") == "1":
        _waiting(record, entry)
    else:
        _ends(record, entry, "lost")


def _reclaimed(record: AllocationRecord, entry: Entry) -> None:
    """It runs, under a grant that the ledger had forgotten or taken back; time that counted already does not again."""
    _placed(record, entry)
    if record.state not in _HOLDING:
        record.granted_at = entry.at
    if record.state != "running":
        record.started_at = entry.at
    _lives(record, "running")


def _prioritised(record: AllocationRecord, entry: Entry) -> None:
    record.priority = entry.number("priority")
    _rearranged(record, entry)


def _rearranged(record: AllocationRecord, entry: Entry) -> None:
    """What was said of its start holds no more."""
    if record.wait_s is None and record.rearranged_at is None:
        record.rearranged_at = entry.at


def _reserved(record: AllocationRecord, entry: Entry) -> None:
    record.reserved_at = record.reserved_at or entry.at


def _held(record: AllocationRecord, entry: Entry) -> None:
    _waiting(record, entry)
    record.state = "on_hold"
    _rearranged(record, entry)


def _back(record: AllocationRecord, entry: Entry) -> None:
    """No longer on hold, or no longer ended. What held a place has an event of its own when it gets one again."""
    _give_back(record, entry)
    state = entry.fields.get("to", "")
    _lives(record, state if state in ("delayed", "on_hold") else "waiting")


def _grown(record: AllocationRecord, entry: Entry) -> None:
    _waiting(record, entry)
    record.grown = (record.grown or 0) + 1


def _overuse(record: AllocationRecord, entry: Entry) -> None:
    used = entry.number("used_mb")
    if entry.fields.get("resource") == "gpu_memory_mb":
        record.overuse_gpu_memory_mb = _largest(record.overuse_gpu_memory_mb, used)
    elif entry.fields.get("resource") == "ram_mb":
        record.overuse_ram_mb = _largest(record.overuse_ram_mb, used)


def _settled(record: AllocationRecord, entry: Entry) -> None:
    if record.ended_at is None:  # its end was missed
        _ends(record, entry, entry.fields.get("outcome") or "ended")


def _unchanged(record: AllocationRecord, entry: Entry) -> None:
    """It is told of, and that is all."""


def _largest(*values: int | None) -> int | None:
    return max((value for value in values if value is not None), default=None)


#: What each event does to the row of its allocation.
_LIFE: dict[str, Callable[[AllocationRecord, Entry], None]] = {
    "delayed": _delayed,
    "waiting": _waiting,
    "granted": _granted,
    "started": _started,
    "released": _released,
    "requeued": _waiting,
    "withdrawn": _waiting,
    "grown": _grown,
    "republished": _unchanged,
    "cancelled": lambda record, entry: _ends(record, entry, entry.fields.get("outcome") or "cancelled"),
    "expired": lambda record, entry: _ends(record, entry, "expired"),
    "parked": lambda record, entry: _ends(record, entry, "parked"),
    "lost": _lost,
    "reclaimed": _reclaimed,
    "renewed": _unchanged,
    "overuse": _overuse,
    "settled": _settled,
    "discarded": _unchanged,
    "held": _held,
    "unheld": _back,
    "restored": _back,
    "priority": _prioritised,
    "moved": _rearranged,
    "reserved": _reserved,
}

#: Events that make no row.
_LATER = ("reserved", "republished", "renewed", "overuse", "settled", "discarded")

#: State that an event leaves a node or device in.
_STATES: dict[str, str | None] = {
    "node": "online",
    "node_lost": "offline",
    "worker": "serving",
    "closing": "closing",
    "left": "idle",
    "worker_lost": "idle",
    "cordoned": "cordoned",
    "draining": "draining",
    "uncordoned": "ready",
    "withheld": None,  # it changes no state
}
_WITHHELD = ("withheld_mb", "foreign_mb", "leftover_mb", "overuse_mb")
_OF_WORKERS = ("worker", "closing", "left", "worker_lost")
