"""The overview in the form that the page draws: small, so that hundreds of GPUs go over the wire every few seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from celery_allocator.ledger import Recommendation
from celery_allocator.ledger.recommending import BUSY, NOT_DECLARED, TOO_LARGE, TOO_SMALL
from celery_allocator.model import Allocation, ClusterState, TaskUse, Withheld
from celery_allocator.overview import DeviceView, NodeView, Outlook, Overview, Page, Running, fault, of_device, of_node

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
        "withheld": _withheld(view.node.ram_withheld, of_node(view.node)),
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
        "reason": device.reason,
        "fault": fault(device),
        "slice_of": device.slice_of,
        "worker": device.worker,
        "queue": device.queue,
        "is_gpu": device.is_gpu,
        "memory": view.memory.as_dict() if device.is_gpu else None,
        "withheld": _withheld(device.withheld, of_device(device)),
        "loaded": list(device.affinities),
        "several": [
            {"task_id": a.task_id, "name": a.task_name, "devices": list(a.device_ids)}
            for a in view.held
            if len(a.device_ids) > 1
        ],
        "slots": view.slots.as_dict(),
        "held": len(view.held),
        "kept": None if view.kept is None else view.kept.as_dict(),
        "measured_at": None if use is None else use.at,
        "utilization": None if use is None else use.gpu_utilization,
        "temperature_c": None if use is None else use.gpu_temperature_c,
        "power_w": None if use is None else use.gpu_power_w,
    }


def _withheld(withheld: Withheld, said: Iterable[str]) -> dict[str, Any] | None:
    """What is given to nobody though no claim holds it, in MB and in sentences; ``None``: nothing is."""
    return {**asdict(withheld), "total_mb": withheld.total_mb, "said": list(said)} if withheld.total_mb else None


def recommendations_dict(found: Iterable[Recommendation], limit: int) -> dict[str, Any]:
    """Where tasks declare too little, far too much, or nothing: by name and requirement, the worst first."""
    rows = [
        {"name": one.task_name, "size": one.size, "resource": resource, **asdict(usage)}
        for one in found
        for resource in ("gpu_memory_mb", "ram_mb", "cpu_cores")
        if (usage := getattr(one, resource)) is not None and usage.verdict
    ]
    order = (TOO_SMALL, BUSY, NOT_DECLARED, TOO_LARGE)
    rows.sort(key=lambda row: (order.index(row["verdict"]), row["name"], row["size"], row["resource"]))
    return {"total": len(rows), "rows": rows[:limit]}


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
                "gpu_memory_mb": one.allocation.gpu_memory_mb,
                "grown": one.allocation.oom_retries,
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
    """``…_over_mb``: beyond its promise, as its worker judges that (``None``: it was not judged)."""
    names = ("gpu_memory_mb", "ram_mb", "gpu_memory_over_mb", "ram_over_mb")
    return None if use is None else {name: getattr(use, name) for name in names}
