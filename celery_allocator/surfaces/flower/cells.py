"""The overview in the form that the page draws: small, so that hundreds of GPUs go over the wire every few seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from celery_allocator.model import Allocation, ClusterState, TaskUse
from celery_allocator.overview import DeviceView, NodeView, Outlook, Overview, Page, Running

#: Tenants that are told at most.
MOST_TENANTS = 100


def pool_dict(overview: Overview) -> dict[str, Any]:
    """The whole pool: counts, every node with its cores and devices, tenants, how true dates were."""
    nodes = [_node(view) for view in overview.nodes]
    return {**counts(overview.cluster), **_outlook(overview.outlook), "nodes": nodes}


def _outlook(outlook: Outlook) -> dict[str, Any]:
    """``tenants`` is empty where everything is one tenant's."""
    told = outlook.as_dict()
    return {
        "tenants": told["tenants"][:MOST_TENANTS] if outlook.is_shared else [],
        "tenants_total": len(told["tenants"]),
        "reservation": told["reservation"],
        "accuracy": told["accuracy"] if outlook.scored else None,
    }


def counts(cluster: ClusterState) -> dict[str, Any]:
    """How many allocations are in which state; ``at``: seconds since the epoch on the ledger's clock."""
    names = ("pool", "at", "paused", "running", "granted", "waiting", "delayed", "on_hold")
    return {name: getattr(cluster, name) for name in names}


def _node(view: NodeView) -> dict[str, Any]:
    names = {a.allocation_id: a for device in view.devices for a in device.held}
    held: dict[str, list[int]] = {}
    for core in view.cores:
        if core.state != "free" and core.allocation_id is not None:
            held.setdefault(core.allocation_id, []).append(core.core_id)
    return {
        "node": view.node.node,
        "state": view.node.state,
        "ram": view.ram.as_dict(),
        "cores": [core.core_id for core in view.cores],
        "cores_free": [core.core_id for core in view.cores if core.state == "free"],
        "cores_held": [
            {"cores": ids, "task_id": names[i].task_id, "name": names[i].task_name}
            for i, ids in held.items()
            if i in names
        ],
        "devices": [_device(device) for device in view.devices],
    }


def _device(view: DeviceView) -> dict[str, Any]:
    device, use = view.device, view.use
    return {
        "key": device.key,
        "device": device.device_id,
        "uuid": device.uuid,
        "model": device.model,
        "state": device.state,
        "worker": device.worker,
        "queue": device.queue,
        "is_gpu": device.is_gpu,
        "memory": view.memory.as_dict() if device.is_gpu else None,
        "slots": view.slots.as_dict(),
        "held": len(view.held),
        "kept": None if view.kept is None else view.kept.as_dict(),
        "measured_at": None if use is None else use.at,
        "utilization": None if use is None else use.gpu_utilization,
        "temperature_c": None if use is None else use.gpu_temperature_c,
        "power_w": None if use is None else use.gpu_power_w,
    }


def waiting_dict(page: Page) -> dict[str, Any]:
    """A part of the line, each with the reason why it waits."""
    return {
        "total": page.total,
        "matched": page.matched,
        "rows": [
            {
                **row.allocation.asked(),
                "position": row.allocation.queue_position,
                "submitted_at": row.allocation.submitted_at,
                "estimated_start_at": row.allocation.estimated_start_at,
                "estimated_start_p90_at": row.allocation.estimated_start_p90_at,
                "kept": None if row.kept is None else asdict(row.kept),
                "reason": asdict(row.reason),
            }
            for row in page.rows
        ],
    }


def on_hold_dict(held: Iterable[Allocation], total: int) -> dict[str, Any]:
    """What is on hold, and by whom."""
    rows = [{**a.asked(), "submitted_at": a.submitted_at, "on_hold_by": a.on_hold_by} for a in held]
    return {"total": total, "matched": total, "rows": rows}


def running_dict(found: list[Running], total: int, limit: int, offset: int) -> dict[str, Any]:
    """What holds something, with what it really uses."""
    return {
        "total": total,
        "matched": len(found),
        "rows": [
            {
                **one.allocation.asked(),
                "state": one.allocation.state.value,
                "kind": one.allocation.kind.value,
                "device": one.allocation.place,
                "worker": one.allocation.worker,
                "cores": list(one.allocation.cpu_cores),
                "granted_at": one.allocation.granted_at,
                "started_at": one.allocation.started_at,
                "use": _use(one.use),
            }
            for one in found[offset : offset + limit]
        ],
    }


def _use(use: TaskUse | None) -> Mapping[str, int | None] | None:
    return None if use is None else {"gpu_memory_mb": use.gpu_memory_mb, "ram_mb": use.ram_mb}
