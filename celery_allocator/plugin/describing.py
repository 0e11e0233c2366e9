"""What a worker knows of itself, without asking anybody: the answer to ``celery inspect allocator``."""

from __future__ import annotations

import time
from typing import Any

from celery_allocator.plugin.fence import Fence
from celery_allocator.plugin.holdings import Holding, Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.report import Reporter


def describe(reporter: Reporter, holdings: Holdings, fence: Fence, meter: Meter) -> dict[str, Any]:
    """As plain data, JSON-ready.

    ``lease_left_s`` is negative once the lease is over; ``use`` is what was measured last, ``None`` before that.
    """
    device = reporter.inventory.device(reporter.device_id)
    last = meter.last
    return {
        "node": reporter.inventory.node,
        "device": reporter.device_id,
        "uuid": "" if device is None else device.uuid,
        "model": "" if device is None else device.model,
        "memory_mb": 0 if device is None else device.memory_mb,
        "queue": reporter.queue,
        "slots": reporter.slots,
        "lease_left_s": round(fence.left_s, 3),
        "lease_losses": fence.losses,
        "holds": [_held(holding) for holding in sorted(holdings.all(), key=lambda held: held.since)],
        "use": None if last is None else last.to_wire(),
    }


def _held(holding: Holding) -> dict[str, Any]:
    """``age_s``: since it passed this worker's gate; ``pid`` is ``None`` while it waits for a process of the pool."""
    allocation = holding.allocation
    return {
        "allocation_id": allocation.allocation_id,
        "task_id": allocation.task_id,
        "name": allocation.task_name,
        "gpu_memory_mb": allocation.gpu_memory_mb,
        "cpu_cores": list(allocation.cpu_cores),
        "ram_mb": allocation.ram_mb,
        "priority": allocation.priority,
        "token": allocation.token,
        "pid": holding.pid,
        "age_s": round(time.monotonic() - holding.since, 3),
    }
