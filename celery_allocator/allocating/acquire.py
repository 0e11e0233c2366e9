"""From a request to a grant or a place in line, waiting as long as the caller wishes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from celery_allocator.allocating.request import Request
from celery_allocator.allocating.session import Session
from celery_allocator.errors import AllocatorError, UnsatisfiableError
from celery_allocator.ledger import Available, new_allocation_id
from celery_allocator.model import Allocation, ClusterState, DeviceState, Kind, NodeState, State

#: Seconds between two looks at a waiting allocation: from the first to the second, growing by half each time.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 0.2
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

    Whoever is interrupted while waiting leaves the line. Raises
    :class:`~celery_allocator.errors.UnsatisfiableError` and what the ledger raises.
    """
    ledger = session.ledger
    session.upkeep()
    # Briefly at first: what turns out never to fit shall not keep the host registered.
    session.offer_host(session.settings.lease_s)
    began = time.perf_counter()
    try:
        submitted = ledger.submit(
            new_allocation_id(),
            request.task_id,
            request.task_type,
            request.requirements,
            strategy=request.strategy,
            kind=Kind.MANUAL,
            ttl_s=request.ttl_s,
        )
    except UnsatisfiableError as error:
        raise session.explain(error) from None
    took_ms = (time.perf_counter() - began) * 1000
    session.offer_host(request.ttl_s)
    taken = submitted.allocation
    taken = replace(taken, expires_at=taken.submitted_at + request.ttl_s)
    if taken.state is State.WAITING and request.wait_s > 0:
        taken = _wait(session, request, taken)
        took_ms = (time.perf_counter() - began) * 1000
        return Acquired(taken, available(session, taken), took_ms)
    return Acquired(taken, submitted.available, took_ms)


def available(session: Session, allocation: Allocation) -> Available:
    """What is left on the device and node of a granted allocation; for a waiting one, where most is left."""
    node = None if allocation.node is None else session.node(allocation.node)
    if node is not None:
        for device in node.devices:
            if device.device_id == allocation.device_id:
                return _left(node, device)
    return roomiest(session.ledger.snapshot())


def roomiest(cluster: ClusterState) -> Available:
    """What is left on the device that has most, by GPU memory, then cores, among those that take work."""
    rows = [_left(node, device) for node in cluster.nodes for device in node.devices if device.state == "ready"]
    return max(rows, key=lambda left: (left.gpu_memory_mb, left.cpu_cores, left.ram_mb), default=Available(0, 0, 0))


def _left(node: NodeState, device: DeviceState) -> Available:
    return Available(device.memory_free_mb, len(node.cpu_cores_free), node.ram_free_mb)


def _wait(session: Session, request: Request, taken: Allocation) -> Allocation:
    ledger = session.ledger
    deadline = time.monotonic() + request.wait_s
    renewed = offered = time.monotonic()
    pause = _FIRST_PAUSE_S
    try:
        while (now := time.monotonic()) < deadline:
            time.sleep(min(pause, deadline - now, request.ttl_s / 4))
            pause = min(pause * 1.5, _LAST_PAUSE_S)
            session.upkeep()
            taken = ledger.get(taken.allocation_id)
            if taken.state is not State.WAITING:
                session.offer_host(request.ttl_s)
                return taken
            if now - renewed >= request.ttl_s / 3:
                taken, renewed = ledger.renew(taken.allocation_id, request.ttl_s), now
            if now - offered >= _OFFER_AGAIN_S:
                session.offer_host(request.ttl_s)
                offered = now
    except AllocatorError:
        raise
    except BaseException:  # interrupted: nobody will ever learn this allocation's id
        ledger.cancel(taken.allocation_id, publishes=False)
        raise
    return taken
