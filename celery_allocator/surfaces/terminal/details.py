"""Everything that is known of one row, as names and values."""

from __future__ import annotations

from typing import Any

from celery_allocator.ledger import Reservation
from celery_allocator.model import Allocation, TenantState, WorkerUse, iso_between, iso_utc
from celery_allocator.overview import Bar, Kept, Running, Waiting, of_device, of_node
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.places import Place
from celery_allocator.surfaces.terminal.tenancy import NOBODY

Facts = list[tuple[str, str]]


def facts(row: Any) -> Facts:
    """Of a place, a tenant, of what runs or of what waits; harmless texts."""
    if isinstance(row, Place):
        told = _of_node(row) if row.device is None else _of_device(row)
    elif isinstance(row, Running):
        told = _of_allocation(row.allocation)
        if row.use is not None:
            use = row.use
            told += [
                ("uses GPU memory", _used(use.gpu_memory_mb, use.gpu_memory_over_mb)),
                ("uses RAM", _used(use.ram_mb, use.ram_over_mb)),
            ]
    elif isinstance(row, TenantState):
        told = _of_tenant(row)
    else:
        assert isinstance(row, Waiting)
        told = [("waits", row.reason.text), ("reservation", _reserved(row.kept)), *_of_allocation(row.allocation)]
    return [(name, words.clean(str(value))) for name, value in told if value not in (None, "")]


def brief(row: Any, now: float) -> str:
    """The most important of it, for a few lines. ``now``: the ledger's clock, in seconds since the epoch."""
    if isinstance(row, Place):
        if row.device is None:
            withheld = "".join(f"\n{words.clean(said)}" for said in of_node(row.node.node))
            return f"{words.clean(row.key)}: RAM {_bar(row.node.ram)}{withheld}"
        told = [row.device.device.model, row.device.device.uuid, row.device.device.worker or "no worker"]
        memory = f"\nGPU memory {_bar(row.device.memory)}" if row.device.device.is_gpu else ""
        kept = _for_whom(row.device.kept, now) if row.device.kept is not None else ""
        more = "".join(f"\n{words.clean(line)}" for line in (row.device.device.reason, kept) if line)
        return words.clean(f"{row.key}  {'  '.join(filter(None, told))}") + more + memory
    if isinstance(row, TenantState):
        return f"{words.clean(row.name or NOBODY)}\n" + "  ".join(f"{name} {value}" for name, value in facts(row)[1:])
    allocation: Allocation = row.allocation
    first = words.clean(f"{allocation.allocation_id}  {allocation.task_id}")
    if isinstance(row, Waiting):
        tenant = allocation.requirements.tenant
        told = [_reserved(row.kept, now) or "", _dates(allocation, now) or "", f"for {tenant}" if tenant else ""]
        return f"{first}\n{words.clean(row.reason.text)}\n{words.clean('  '.join(filter(None, told)))}"
    cores = ", ".join(str(core) for core in allocation.cpu_cores)
    return f"{first}\n{words.clean(allocation.task_name)}  cores {cores or '-'}  {words.clean(allocation.worker or '')}"


def _of_node(place: Place) -> list[tuple[str, Any]]:
    node = place.node.node
    return [
        ("node", node.node),
        ("state", node.state),
        ("RAM", _bar(place.node.ram)),
        ("withheld", " ".join(of_node(node))),
        ("cores", f"{len(node.cpu_cores_free)} of {len(node.cpu_cores)} free"),
        ("free cores", ", ".join(map(str, node.cpu_cores_free))),
        ("devices", ", ".join(device.device_id for device in node.devices)),
    ]


def _of_device(place: Place) -> list[tuple[str, Any]]:
    assert place.device is not None
    device, use = place.device.device, place.device.use
    return [
        ("device", device.key),
        ("model", device.model),
        ("UUID", device.uuid),
        ("state", ": ".join(filter(None, (device.state, device.reason)))),
        ("worker", device.worker or "none"),
        ("queue", device.queue),
        ("MIG slice of", device.slice_of),
        ("GPU memory", _bar(place.device.memory) if device.is_gpu else None),
        ("withheld", " ".join(of_device(device))),
        ("slots", f"{device.slots_free} of {device.slots} free" if device.worker else None),
        ("holds", ", ".join(device.allocations) or "nothing"),
        ("loaded", ", ".join(device.affinities) or None),
        ("with other GPUs", ", ".join(f"{a.task_name} on {a.place}" for a in place.device.held if a.more_devices)),
        ("kept for", None if place.device.kept is None else _for_whom(place.device.kept)),
        *(() if use is None else _measured(use)),
    ]


def _measured(use: WorkerUse) -> list[tuple[str, Any]]:
    return [
        ("load", None if use.gpu_utilization is None else f"{use.gpu_utilization:.0%}"),
        ("temperature", None if use.gpu_temperature_c is None else f"{use.gpu_temperature_c} °C"),
        ("power", None if use.gpu_power_w is None else f"{use.gpu_power_w:.0f} W"),
        ("measured", iso_utc(use.at)),
    ]


def _of_allocation(allocation: Allocation) -> list[tuple[str, Any]]:
    asked = allocation.requirements
    several = f"{asked.gpu_count} × " if asked.gpu_count > 1 else ""
    claimed = f"{several}{allocation.gpu_memory_mb} MB GPU, {asked.cpu_cores} cores, {asked.ram_mb} MB RAM"
    claimed = ", ".join((claimed, *asked.besides))
    return [
        ("name", allocation.task_name),
        ("task", allocation.task_id),
        ("allocation", allocation.allocation_id),
        ("state", allocation.state.value.replace("_", " ")),
        ("kind", allocation.kind.value),
        ("claims", claimed),
        ("priority", allocation.priority),
        ("tenant", asked.tenant),
        ("position", allocation.queue_position or None),
        ("device", allocation.place or None),
        ("cores", ", ".join(map(str, allocation.cpu_cores))),
        ("worker", allocation.worker),
        ("submitted", iso_utc(allocation.submitted_at)),
        ("granted", iso_utc(allocation.granted_at)),
        ("started", iso_utc(allocation.started_at)),
        ("estimated start", iso_between(allocation.estimated_start_at, allocation.estimated_start_p90_at)),
        ("ETA", iso_utc(allocation.eta_at)),
        ("expires", iso_utc(allocation.expires_at)),
        ("workers lost", allocation.losses or None),
        ("claim grown", allocation.oom_retries or None),
        ("on hold by", allocation.on_hold_by),
    ]


def _of_tenant(tenant: TenantState) -> list[tuple[str, Any]]:
    def held(name: str, unit: str) -> str:
        cap = getattr(tenant.quota, name)
        return f"{getattr(tenant, name)}{unit}" + ("" if cap is None else f" of at most {cap}{unit}")

    return [
        ("tenant", tenant.name or NOBODY),
        ("weight", f"{tenant.quota.weight:g}"),
        ("share", f"{tenant.share:.1%}"),
        ("waiting", str(tenant.waiting)),
        ("GPU memory", held("gpu_memory_mb", " MB")),
        ("cores", held("cpu_cores", "")),
        ("RAM", held("ram_mb", " MB")),
        ("tasks", held("tasks", "")),
        ("quota by", tenant.by),
    ]


def _dates(allocation: Allocation, now: float) -> str | None:
    half, most = allocation.estimated_start_at, allocation.estimated_start_p90_at
    if half is None:
        return None
    return "starts " + " … ".join(dict.fromkeys(words.clock(at, now) for at in (half, most or half)))


def _reserved(kept: Reservation | None, now: float | None = None) -> str | None:
    """What is kept for one that waits. ``now``: short, for one who looks at that time."""
    if kept is None:
        return None
    if kept.device is None:
        return f"passed {kept.passed} times since {_at(kept.since, now)}"
    return f"{kept.device} is kept for it {_until(kept, now)}"


def _for_whom(kept: Kept, now: float | None = None) -> str:
    return f"kept for {kept.holder.task_name} ({kept.holder.task_id}) {_until(kept.reservation, now)}"


def _until(kept: Reservation, now: float | None) -> str:
    return "and emptied" if kept.starts_at is None else f"until {_at(kept.starts_at, now)}"


def _at(at: float, now: float | None) -> str:
    return str(iso_utc(at)) if now is None else words.clock(at, now)


def _bar(bar: Bar) -> str:
    told = f"{words.size(bar.promised)} of {words.size(bar.capacity)} promised"
    if bar.used is not None:
        told += f", {words.size(bar.used)} used"
    if bar.leftover:
        told += f", {words.size(bar.leftover)} kept without a task"
    if bar.foreign:
        told += f", {words.size(bar.foreign)} by others"
    if bar.overused:
        told += f", {words.size(bar.overused)} beyond the promise"
    return f"{told}, {words.size(bar.free)} free"


def _used(amount: int | None, over: int | None) -> str | None:
    beyond = f", {over} MB beyond its promise" if over else ""
    return None if amount is None else f"{amount} MB{beyond}"
