"""From the event stream to counters and histograms.

What each event does to an allocation is the history's to say (``history/fold.py``): its records are kept here while
their allocations live, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import product

from celery_allocator.gate.rules.endings import OUT_OF_MEMORY
from celery_allocator.history.dates import kept
from celery_allocator.history.entry import Entry, parse
from celery_allocator.history.fold import Changes, concerns_allocation
from celery_allocator.history.outcomes import FAILURES, KNOWN
from celery_allocator.history.records import AllocationRecord
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.metrics.value import OTHER
from celery_allocator.updates.changes import LEFT_OUT, RULES

#: Allocations that are remembered at most; beyond it the one heard of first is forgotten, and its end only counted.
MOST = 200_000

_EVENTS = frozenset({*RULES, *LEFT_OUT})
_REGRANTS = ("lost", "withdrawn", "requeued", "grown")
_OVERUSE = ("gpu_memory", "ram")
_ACTIONS = ("warn", "kill")
_AFFINITY = ("hit", "miss")
_LEASES = {"worker_lost": "worker", "node_lost": "node"}


class Counting:
    """Fed with entries, each once and in order. One thread feeds."""

    def __init__(self, tallies: Tallies, *, most: int = MOST) -> None:
        self._tallies = tallies
        self._most = most
        self.forget()
        tallies.expect("events_total", sorted(_EVENTS))
        tallies.expect("regrants_total", _REGRANTS)
        tallies.expect("releases_total", sorted(KNOWN))
        tallies.expect("affinity_grants_total", _AFFINITY)
        for resource, action in product(_OVERUSE, _ACTIONS):
            tallies.add("overuse_actions_total", resource, action, amount=0)
        tallies.expect("leases_expired_total", _LEASES.values())

    @property
    def remembered(self) -> int:
        """How many allocations are remembered."""
        return len(self._records)

    def forget(self) -> None:
        """Entries were missed: whose end was among them is not known, so all is forgotten."""
        self._records: dict[str, AllocationRecord] = {}
        self._fold = Changes(self._records)
        #: Why what is in line again is there.
        self._again: dict[str, str] = {}

    def feed(self, entries: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Take entries of the stream into account, all at once for those who read the tallies."""
        with self._tallies.together():
            for event_id, fields in entries:
                self._count(parse(event_id, fields))
        # What it notes for the history's other tables.
        self._fold.states.clear()
        self._fold.actions.clear()
        while len(self._records) > self._most:
            forgotten = next(iter(self._records))
            del self._records[forgotten]
            self._again.pop(forgotten, None)

    def _count(self, entry: Entry) -> None:
        event = entry.event
        self._tallies.add("events_total", event if event in _EVENTS else OTHER)
        self._happened(entry)
        if not concerns_allocation(entry):
            return
        known = self._records.get(entry.object_id)
        waited, state = (None, None) if known is None else (known.wait_s, known.state)
        self._fold.fold((entry,))
        record = self._records.get(entry.object_id)
        if record is None:
            return
        if record.wait_s is not None and waited is None:
            self._first_start(record, record.wait_s)
        if event == "granted":
            self._granted(record)
        elif event == "started" and record.granted_at is not None and state == "granted":
            self._tallies.observe("placement_latency_seconds", (entry.at - record.granted_at).total_seconds())
        elif event in _REGRANTS and record.state == "waiting":
            self._again[entry.object_id] = event
        if record.state == "released":
            self._ended(record, entry)

    def _happened(self, entry: Entry) -> None:
        """What the entry alone tells."""
        event = entry.event
        if event == "republished":
            self._tallies.add("republished_total")
        elif event in _LEASES:
            self._tallies.add("leases_expired_total", _LEASES[event])
        elif event == "overuse":
            resource = entry.fields.get("resource", "").removesuffix("_mb")
            action = entry.fields.get("action", "")
            self._tallies.add(
                "overuse_actions_total",
                resource if resource in _OVERUSE else OTHER,
                action if action in _ACTIONS else OTHER,
            )
        elif event == "grown":
            node, _, device = entry.fields.get("device", "").partition("/")
            self._tallies.add("claims_grown_total", node, device)
        elif event == "granted" and entry.fields.get("warm"):
            loaded = entry.fields["warm"]
            self._tallies.add("affinity_grants_total", loaded if loaded in _AFFINITY else OTHER)

    def _first_start(self, record: AllocationRecord, wait_s: float) -> None:
        self._tallies.observe("queue_wait_seconds", wait_s)
        promise = kept(record)
        if record.queue_position and promise is not None:
            self._tallies.observe("estimate_error_seconds", promise.error_s)

    def _granted(self, record: AllocationRecord) -> None:
        self._tallies.add("grants_total", record.node or "", record.device or "")
        reason = self._again.pop(record.allocation_id, None)
        if reason is not None:
            self._tallies.add("regrants_total", reason)

    def _ended(self, record: AllocationRecord, entry: Entry) -> None:
        outcome = record.outcome or ""
        self._tallies.add("releases_total", outcome if outcome in KNOWN else OTHER)
        error = entry.fields.get("error", "")
        if outcome in FAILURES and any(fnmatchcase(error, glob) for glob in OUT_OF_MEMORY):
            self._tallies.add("out_of_memory_total", record.node or "", record.device or "")
        del self._records[entry.object_id]
        self._again.pop(entry.object_id, None)
