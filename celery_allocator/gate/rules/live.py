"""Rules about the ledger as it is now. They need no history."""

from __future__ import annotations

from collections.abc import Iterator

from celery_allocator.gate.evidence import Evidence
from celery_allocator.gate.registry import Measurement, rule
from celery_allocator.model import Allocation

#: Waiting allocations, or events, per read.
_PAGE = 1000


@rule("ledger_differences", unit="count", filters=(), live=True)
def ledger_differences(evidence: Evidence) -> Measurement:
    """Differences that a recount of the whole ledger finds, as `celery-allocator verify` tells them."""
    found = evidence.ledger.verify()
    return Measurement(float(len(found)), 1, tuple(found[:5]))


@rule("waiting_now", unit="count", filters=("task", "tenant"), live=True)
def waiting_now(evidence: Evidence) -> Measurement:
    """Allocations that wait for room now."""
    return Measurement(float(sum(1 for _ in _waiting(evidence))), 1)


@rule("oldest_waiting", unit="s", filters=("task", "tenant"), live=True)
def oldest_waiting(evidence: Evidence) -> Measurement:
    """For how long the oldest of those that wait now has been there, since its submit or ETA; 0 if none waits."""
    now = evidence.ledger.snapshot().at
    oldest = min(_waiting(evidence), key=_since, default=None)
    if oldest is None:
        return Measurement(0.0, 1)
    return Measurement(max(0.0, now - _since(oldest)), 1, (f"{oldest.task_name} ({oldest.allocation_id})",))


@rule("lost_workers", unit="count", filters=("device",), live=True)
def lost_workers(evidence: Evidence) -> Measurement:
    """Workers whose lease is over now, or ran out in the window without the worker having come back.

    As far back as the ledger's own event stream reaches.
    """
    lost: dict[str, str] = {}
    for fields in _stream(evidence):
        if fields["event"] == "worker_lost":
            lost[fields["id"]] = fields.get("device", "")
        elif fields["event"] == "worker":
            lost.pop(fields["id"], None)
    snapshot = evidence.ledger.snapshot()
    lost |= {w.worker: f"{w.node}/{w.device_id}" for w in snapshot.workers if w.lease_left_s <= 0}
    named = tuple(f"{worker} of {device}" for worker, device in sorted(lost.items()) if evidence.matches(device=device))
    return Measurement(float(len(named)), 1, named[:5])


@rule("offline_devices", unit="count", filters=("device",), live=True)
def offline_devices(evidence: Evidence) -> Measurement:
    """Devices that are offline now: their node's lease is over, or their node does not name them any more."""
    offline = [
        d.key for d in evidence.ledger.snapshot().devices if d.state == "offline" and evidence.matches(device=d.key)
    ]
    return Measurement(float(len(offline)), 1, tuple(offline[:5]))


@rule("parked_messages", unit="count", filters=("task",), live=True)
def parked_messages(evidence: Evidence) -> Measurement:
    """Messages that could not be read and wait for an operator's decision."""
    count = offset = 0
    while page := evidence.ledger.parked(limit=_PAGE, offset=offset):
        count += sum(1 for parked in page if evidence.matches(task=parked.task_name))
        offset += len(page)
    return Measurement(float(count), 1)


def _waiting(evidence: Evidence) -> Iterator[Allocation]:
    offset = 0
    while page := evidence.ledger.queue(limit=_PAGE, offset=offset):
        yield from (a for a in page if evidence.matches(task=a.task_name, tenant=a.requirements.tenant))
        offset += len(page)


def _since(allocation: Allocation) -> float:
    return max(allocation.submitted_at, allocation.eta_at or 0.0)


def _stream(evidence: Evidence) -> Iterator[dict[str, str]]:
    """The stream's entries of the window, oldest first."""
    last, end = f"{max(0, int(evidence.window.start_s * 1000))}-0", evidence.window.end_s * 1000
    while entries := evidence.ledger.events(last, _PAGE):
        yield from (fields for _, fields in entries if int(fields["at"]) < end)
        last = entries[-1][0]
