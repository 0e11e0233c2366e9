"""Look at the pool and its line, as data: nothing is changed, and no host is offered.

The functions answer like those of ``function``: dicts, with ``success: False`` and ``error`` where it cannot be done.
"""

from __future__ import annotations

from typing import Any

from celery_allocator.allocating import reply
from celery_allocator.allocating.acquire import available
from celery_allocator.allocating.answering import Answer, answer
from celery_allocator.allocating.request import count, name
from celery_allocator.allocating.session import Session
from celery_allocator.model import Allocation, DeviceState, NodeState, iso_utc

#: How many devices or waiting allocations are listed unless told otherwise, and at most.
LISTED, MOST_LISTED = 50, 1000


def pool_status(
    allocation_id: str | None = None, limit: int = LISTED, *, session: Session | None = None
) -> dict[str, Any]:
    """One allocation, in the form of :func:`allocate_resources`; without an id the pool: what it has and what is free.

    ``limit``: list at most so many devices. ``allocations`` are those of the session's owner.
    """

    def work(active: Session) -> Answer:
        wanted = None if allocation_id is None else name("allocation_id", allocation_id)
        most = count("limit", limit, most=MOST_LISTED)
        active.upkeep()
        if wanted is None:
            return _pool(active, most)
        found = active.ledger.get(wanted)
        left = available(active, found)
        return lambda took_ms: reply.success(found, took_ms, left)

    return answer(work, session, allocation_id=allocation_id)


def pool_queue(limit: int = LISTED, *, session: Session | None = None) -> dict[str, Any]:
    """What waits, in its order. ``limit``: list at most so many."""

    def work(active: Session) -> Answer:
        most = count("limit", limit, most=MOST_LISTED)
        active.upkeep()
        waiting = active.ledger.queue(limit=most + 1)
        return lambda took_ms: {
            "success": True,
            "waiting": [_in_line(allocation) for allocation in waiting[:most]],
            "more": len(waiting) > most,
            "metadata": {"took_ms": round(took_ms, 3)},
        }

    return answer(work, session)


def _pool(session: Session, most: int) -> Answer:
    cluster = session.ledger.snapshot()
    mine = () if session.owner is None else session.ledger.owned(session.owner.name)
    listed = [(node, device) for node in cluster.nodes for device in node.devices]
    return lambda took_ms: {
        "success": True,
        "pool": {
            "name": cluster.pool,
            "paused": cluster.paused or None,
            "running": cluster.running,
            "granted": cluster.granted,
            "waiting": cluster.waiting,
            "delayed": cluster.delayed,
            "on_hold": cluster.on_hold,
        },
        "devices": [_device(node, device) for node, device in listed[:most]],
        "more": len(listed) > most,
        "allocations": [_of_mine(allocation) for allocation in mine],
        "metadata": {"took_ms": round(took_ms, 3)},
    }


def _device(node: NodeState, device: DeviceState) -> dict[str, Any]:
    return {
        "device": device.key,
        "state": device.state,
        "model": device.model or None,
        "gpu_memory_mb": device.memory_mb if device.is_gpu else 0,
        "gpu_memory_free_mb": device.memory_free_mb if device.is_gpu else 0,
        "cpu_cores_free": len(node.cpu_cores_free),
        "ram_free_mb": node.ram_free_mb,
        "allocations": len(device.allocations),
        "worker": device.worker,
    }


def _of_mine(allocation: Allocation) -> dict[str, Any]:
    return {
        "allocation_id": allocation.allocation_id,
        "task_id": allocation.task_id,
        "state": allocation.state.value,
        "queue_position": allocation.queue_position,
        "resources": reply.resources(allocation) if allocation.state in reply.HOLDING else None,
        "token": allocation.token or None,
        "expires_at": iso_utc(allocation.expires_at),
    }


def _in_line(allocation: Allocation) -> dict[str, Any]:
    return {
        "position": allocation.queue_position,
        "allocation_id": allocation.allocation_id,
        "task_id": allocation.task_id,
        "task_type": allocation.task_name,
        "requirements": allocation.requirements.as_dict(),
        "strategy": allocation.strategy.value,
        "submitted_at": iso_utc(allocation.submitted_at),
        "estimated_start_time": iso_utc(allocation.estimated_start_at),
    }
