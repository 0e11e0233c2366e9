"""From a request to a grant or a place in line, waiting as long as the caller wishes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from celery_allocator.allocating.request import Request
from celery_allocator.allocating.session import Session
from celery_allocator.errors import AllocatorError, LedgerError, UnsatisfiableError
from celery_allocator.ledger import Available, new_allocation_id
from celery_allocator.model import Allocation, DeviceState, Kind, NodeState, State
from celery_allocator.operations import Allocate

#: Seconds between two looks at a waiting allocation: from the first to the second, growing by half each time.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 0.2
#: States in which an allocation by hand has no place yet: an operator may put it on hold while it waits.
WAITS = (State.WAITING, State.ON_HOLD)
#: Seconds after which a waiting request offers this host again, should its lease have ended meanwhile.
_OFFER_AGAIN_S = 1.0


@dataclass(frozen=True)
class Acquired:
    """An allocation, granted or waiting, what is left beside it, and the milliseconds from submission to answer."""

    allocation: Allocation
    available: Available
    took_ms: float


def acquire(session: Session, request: Request) -> Acquired:
    """Submit the request, then wait up to ``request.wait_s`` seconds for its grant.

    Whoever is interrupted while waiting leaves the line, and whoever is killed is out of it after a lease's length: a
    place in line lives that long while somebody waits for it, and for the whole TTL after that. Raises
    :class:`~celery_allocator.errors.UnsatisfiableError` and what the ledger raises.
    """
    ledger = session.ledger
    session.upkeep()
    # Briefly at first: what turns out never to fit shall not keep the host registered.
    session.offer_host(session.settings.lease_s)
    life_s = min(request.ttl_s, session.settings.lease_s) if request.wait_s > 0 else request.ttl_s
    began = time.perf_counter()
    allocation_id = new_allocation_id()
    session.own(allocation_id)
    try:
        submitted = ledger.submit(
            allocation_id,
            request.task_id,
            request.task_type,
            request.requirements,
            strategy=request.strategy,
            kind=Kind.MANUAL,
            ttl_s=life_s,
            note=session.note(Allocate(allocation_id)),
        )
    except LedgerError:  # it may have been submitted nevertheless
        raise
    except AllocatorError as error:
        session.disown(allocation_id)
        if isinstance(error, UnsatisfiableError):
            raise session.explain(error) from None
        raise
    taken = submitted.allocation
    left: Available | None = submitted.available
    if taken.state in WAITS and request.wait_s > 0:
        taken, left = _wait(session, request, taken, life_s), None
    took_ms = (time.perf_counter() - began) * 1000
    session.offer_host(request.ttl_s)
    if life_s < request.ttl_s:
        taken = ledger.renew(taken.allocation_id, request.ttl_s)
    elif taken.expires_at is None:
        taken = replace(taken, expires_at=taken.submitted_at + request.ttl_s)
    return Acquired(taken, left if left is not None else available(session, taken), took_ms)


def available(session: Session, allocation: Allocation) -> Available:
    """What is left on the device and node of a granted allocation; for a waiting one, where most is left."""
    node = None if allocation.node is None else session.node(allocation.node)
    if node is not None:
        for device in node.devices:
            if device.device_id == allocation.device_id:
                return _left(node, device)
    return session.ledger.room()


def _left(node: NodeState, device: DeviceState) -> Available:
    return Available(device.memory_free_mb, len(node.cpu_cores_free), node.ram_free_mb)


def _wait(session: Session, request: Request, taken: Allocation, life_s: float) -> Allocation:
    """Poll until the grant or for ``request.wait_s`` seconds, renewing the place in line for ``life_s`` each time."""
    ledger = session.ledger
    deadline = time.monotonic() + request.wait_s
    renewed = offered = time.monotonic()
    pause = _FIRST_PAUSE_S
    try:
        while taken.state in WAITS and (now := time.monotonic()) < deadline:
            session.pause(min(pause, deadline - now, life_s / 4))
            pause = min(pause * 1.5, _LAST_PAUSE_S)
            session.upkeep()
            if now - renewed >= life_s / 3:
                taken, renewed = ledger.renew(taken.allocation_id, life_s), now
            else:
                taken = ledger.get(taken.allocation_id)
            if now - offered >= _OFFER_AGAIN_S:
                session.offer_host(request.ttl_s)
                offered = now
    except AllocatorError:
        raise
    except BaseException:  # interrupted: nobody will ever learn this allocation's id
        ledger.cancel(taken.allocation_id, publishes=False)
        raise
    return taken
