"""The replies of the function form, as plain JSON-ready dicts. One shape for every outcome; nothing is ever left out.

``success``, ``allocation_id``, ``task_id``, ``resources`` (``None`` while it waits), ``queue_position`` (0: does not
wait), ``estimated_start_time`` (``None``: not known), ``metadata``; then ``state``, ``task_type``, ``strategy``,
``node``, ``gpu_uuid``, ``token`` and ``expires_at``; then, in a refusal only, ``error`` with ``code`` and ``message``.
"""

from __future__ import annotations

from typing import Any

from celery_allocator.errors import AllocatorError
from celery_allocator.ledger import Available
from celery_allocator.model import Allocation, State, iso_utc

#: States in which an allocation holds something.
HOLDING = (State.GRANTED, State.RUNNING)


def success(allocation: Allocation, took_ms: float, available: Available | None) -> dict[str, Any]:
    """An allocation that lives, or (state ``released``) has just been given back."""
    holds = allocation.state in HOLDING
    return {
        "success": True,
        "allocation_id": allocation.allocation_id,
        "task_id": allocation.task_id,
        "resources": resources(allocation) if holds else None,
        "queue_position": allocation.queue_position,
        "estimated_start_time": iso_utc(allocation.granted_at if holds else allocation.estimated_start_at),
        "metadata": _metadata(took_ms, available),
        "state": allocation.state.value,
        "task_type": allocation.task_name,
        "strategy": allocation.strategy.value,
        "node": allocation.node if holds else None,
        "gpu_uuid": allocation.gpu_uuid if holds else None,
        "token": allocation.token if holds else None,
        "expires_at": iso_utc(allocation.expires_at),
    }


def refusal(error: AllocatorError, took_ms: float, *, allocation_id: Any = None, task_id: Any = None) -> dict[str, Any]:
    """Nothing was allocated or changed, and why."""
    return {
        "success": False,
        "allocation_id": allocation_id if isinstance(allocation_id, str) else None,
        "task_id": task_id if isinstance(task_id, str) else None,
        "resources": None,
        "queue_position": 0,
        "estimated_start_time": None,
        "metadata": _metadata(took_ms, None),
        "error": error.as_dict(),
    }


def resources(allocation: Allocation) -> dict[str, Any]:
    """What a grant holds: one GPU's memory (of several, of each: ``gpu_ids``, ``gpu_uuids``), core ids, RAM."""
    held: dict[str, Any] = {
        "gpu_id": allocation.gpu_id,
        "gpu_memory_mb": allocation.gpu_memory_mb,
        "cpu_cores": list(allocation.cpu_cores),
        "ram_mb": allocation.ram_mb,
    }
    if len(allocation.gpu_ids) > 1:
        held |= {"gpu_ids": list(allocation.gpu_ids), "gpu_uuids": list(allocation.gpu_uuids)}
    return held


def _metadata(took_ms: float, available: Available | None) -> dict[str, Any]:
    left = None
    if available is not None:
        left = {
            "gpu_memory_mb": available.gpu_memory_mb,
            "cpu_cores": available.cpu_cores,
            "ram_mb": available.ram_mb,
        }
    return {"allocation_time_ms": round(took_ms, 3), "available_resources": left}
