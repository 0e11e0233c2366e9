"""The pool at one look: nodes with their cores as cells and their devices as bars, and what runs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, ClusterState, DeviceState, Kind, NodeState, TaskUse, Withheld, WorkerUse
from celery_allocator.overview.bars import Bar
from celery_allocator.overview.outlook import Kept, Outlook, read_outlook

#: Seconds after which what was measured is not shown any more: its driver hangs, or its worker measures less often.
STALE_S = 120.0


@dataclass(frozen=True)
class Core:
    """One core of a node. ``state``: ``free``, ``held``, or ``withdrawn`` (still held, and offered no longer)."""

    core_id: int
    allocation_id: str | None
    state: str


@dataclass(frozen=True)
class DeviceView:
    """One device: its GPU memory in MB, its worker's slots, what was measured there, and who holds it.

    ``kept``: the reservation, where it is this device that is kept.
    """

    device: DeviceState
    memory: Bar
    slots: Bar
    use: WorkerUse | None
    held: tuple[Allocation, ...]
    kept: Kept | None = None


@dataclass(frozen=True)
class NodeView:
    """One node: its cores, its RAM in MB, its devices."""

    node: NodeState
    cores: tuple[Core, ...]
    ram: Bar
    devices: tuple[DeviceView, ...]


@dataclass(frozen=True)
class Running:
    """One allocation that holds something, and what its processes use, where that was measured."""

    allocation: Allocation
    use: TaskUse | None


@dataclass(frozen=True)
class Overview:
    """The whole pool. ``running``: granted and running allocations by the time of their grant.

    The snapshot, the list of what is held and the outlook are reads of their own: what was granted or released in
    between may be in one only.
    """

    cluster: ClusterState
    nodes: tuple[NodeView, ...]
    running: tuple[Running, ...]
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def devices(self) -> tuple[DeviceView, ...]:
        """Every device of every node, pseudo-devices included."""
        return tuple(device for node in self.nodes for device in node.devices)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        cluster = self.cluster
        counts = ("pool", "at", "delayed", "waiting", "granted", "running", "on_hold", "paused")
        return {
            **{name: getattr(cluster, name) for name in counts},
            "workers": [asdict(worker) for worker in cluster.workers],
            "nodes": [_node_dict(view) for view in self.nodes],
            "allocations": [_running_dict(one) for one in self.running],
            **self.outlook.as_dict(),
        }


def read_overview(ledger: Ledger) -> Overview:
    """Look at the pool: some read-only scripts. Raises :class:`~celery_allocator.errors.LedgerError`."""
    return overview(ledger.snapshot(), ledger.held(), read_outlook(ledger))


def overview(cluster: ClusterState, held: tuple[Allocation, ...], outlook: Outlook | None = None) -> Overview:
    """The pool as people look at it. ``held``: granted and running allocations."""
    outlook = outlook or Outlook()
    uses = {
        worker.worker: worker.use
        for worker in cluster.workers
        if worker.use is not None and cluster.at - worker.use.at <= STALE_S
    }
    by_device: dict[str, list[Allocation]] = defaultdict(list)
    for allocation in held:
        for device_id in allocation.device_ids:
            by_device[f"{allocation.node}/{device_id}"].append(allocation)
    nodes = tuple(_node(node, by_device, uses, outlook.kept) for node in cluster.nodes)
    tasks = {task.allocation_id: task for use in uses.values() for task in use.tasks}
    return Overview(cluster, nodes, tuple(Running(a, tasks.get(a.allocation_id)) for a in held), outlook)


def _node(
    node: NodeState, by_device: dict[str, list[Allocation]], uses: dict[str, WorkerUse], kept: Kept | None
) -> NodeView:
    devices = tuple(_device(device, tuple(by_device.get(device.key, ())), uses, kept) for device in node.devices)
    measured = [view.use for view in devices if view.use is not None]
    # Each worker of a node measures the same whole; the newest look counts.
    newest = max(measured, key=lambda use: use.at, default=None)
    used = newest.ram_used_mb if newest else None
    shares = [use.ram_ours_mb for use in measured]
    ours = None if used is None or None in shares else min(used, sum(share or 0 for share in shares))
    promised = node.ram_claimed_mb
    foreign = None if ours is None else (used or 0) - ours
    # One on several devices stands on each of them, and has its cores and RAM once.
    held = list({a.allocation_id: a for view in devices for a in view.held}.values())
    by_hand = sum(a.ram_mb for a in held if a.kind is Kind.MANUAL)
    ram = _bar(node.ram_mb, promised, used, foreign, by_hand, node.ram_withheld)
    return NodeView(node, _cores(node, devices), ram, devices)


def _device(
    device: DeviceState, held: tuple[Allocation, ...], uses: dict[str, WorkerUse], kept: Kept | None
) -> DeviceView:
    use = uses.get(device.worker or "")
    promised = device.memory_claimed_mb
    used = None if use is None else use.gpu_memory_used_mb
    foreign = None if use is None else use.gpu_memory_foreign_mb
    # As withhold.lua: this worker does not know the processes of what another one runs here, on several GPUs.
    by_others = sum(a.gpu_memory_mb for a in held if a.kind is Kind.MANUAL or a.device_id != device.device_id)
    memory = _bar(device.memory_mb, promised, used, foreign, by_others, device.withheld)
    slots = Bar(device.slots, device.slots - device.slots_free)
    here = kept if kept is not None and kept.device == device.key else None
    return DeviceView(device, memory, slots, use, held, here)


def _bar(
    capacity: int, promised: int, used: int | None, foreign: int | None, by_others: int, withheld: Withheld
) -> Bar:
    """``by_others``: promised to what the worker does not know the processes of: up to that they are ours."""
    more = (withheld.leftover_mb, withheld.overuse_mb, withheld.total_mb)
    if used is None:  # not lately: what is withheld stays so
        return Bar(capacity, promised, None, withheld.foreign_mb or None, *more)
    if foreign is None:  # process ids are hidden, or nobody says whose it is
        others = min(used, withheld.foreign_mb)
        return Bar(capacity, promised, used - others, others or None, *more)
    others = max(0, foreign - by_others)
    return Bar(capacity, promised, used - others, others, *more)


def _cores(node: NodeState, devices: tuple[DeviceView, ...]) -> tuple[Core, ...]:
    holders = {core: a.allocation_id for view in devices for a in view.held for core in a.cpu_cores}
    free = set(node.cpu_cores_free)
    offered = set(node.cpu_cores)
    return tuple(
        Core(core, holders.get(core), "free" if core in free else "held" if core in offered else "withdrawn")
        for core in sorted(offered | holders.keys())
    )


def _node_dict(view: NodeView) -> dict[str, Any]:
    return {
        "node": view.node.node,
        "state": view.node.state,
        "cores": [asdict(core) for core in view.cores],
        "ram": view.ram.as_dict(),
        "devices": [
            {
                **asdict(one.device),
                "key": one.device.key,
                "memory": one.memory.as_dict(),
                "slots": one.slots.as_dict(),
                "use": None if one.use is None else asdict(one.use),
                "kept": None if one.kept is None else one.kept.as_dict(),
            }
            for one in view.devices
        ],
    }


def _running_dict(one: Running) -> dict[str, Any]:
    use = one.use
    a = one.allocation
    devices = [f"{a.node}/{device}" for device in a.device_ids]
    return {**a.to_wire(), "devices": devices, "use": None if use is None else asdict(use)}
