"""What there is (inventory) and what the ledger says of it (cluster state)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from celery_allocator.model.use import NOTHING, Withheld, WorkerUse

#: Name of the pseudo-device that CPU-only work of a node runs under.
CPU_DEVICE = "cpu"


class Link(IntEnum):
    """How near two GPUs of a node are to each other; a smaller number is nearer.

    The order is that of ``nvidia-smi topo``: what data between the two has to cross.
    """

    NVLINK = 0  # directly, or by an NVSwitch
    SWITCH = 1  # PCIe switches, or they sit on one board
    BRIDGE = 2  # a PCIe host bridge
    NUMA = 3  # host bridges of one NUMA node
    OTHER = 4  # the interconnect between NUMA nodes, or it is not known


@dataclass(frozen=True)
class DeviceInventory:
    """One GPU of this host, or one MIG slice of one, as found.

    ``memory_mb``: what a process can get of it, in MB (2**20 bytes): its total without ``reserved_mb``, what the driver
    keeps for itself (``None``: it does not tell, and it is part of ``memory_mb``). ``cpu_affinity``: core ids near it
    (may be empty). ``compute_capability``: ``"9.0"``. ``parent_uuid``: of a MIG slice, the UUID of its GPU.
    What is not known is ``None``.
    """

    device_id: str  # "gpu_0"
    index: int
    uuid: str
    model: str
    memory_mb: int
    cpu_affinity: tuple[int, ...] = ()
    simulated: bool = False
    reserved_mb: int | None = None
    compute_capability: str | None = None
    numa_node: int | None = None
    parent_uuid: str | None = None

    @property
    def number(self) -> str:
        """As people call it: the index, and ``0:1`` for slice 1 of GPU 0. ``index`` is that of the GPU."""
        return str(self.index) if self.parent_uuid is None else f"{self.index}:{self.device_id.rpartition('_')[2]}"

    @property
    def names(self) -> tuple[str, str, str]:
        """What it may be named by: number, id or UUID."""
        return self.number, self.device_id, self.uuid


@dataclass(frozen=True)
class NodeInventory:
    """One host, as found: the core ids it offers, its RAM, its devices and how near these are to each other.

    ``labels``: what its operator says of it, for tasks that ask for such a node.

    ``links``: by the ids of two devices, the smaller one first as text: ``("gpu_0", "gpu_1")``. See :meth:`link`.
    """

    node: str
    cpu_cores: tuple[int, ...]
    ram_mb: int
    devices: tuple[DeviceInventory, ...] = ()
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    def link(self, one: str, other: str) -> Link:
        """How near two devices are, by their ids in any order; what is not known is :attr:`Link.OTHER`."""
        return self.links.get((one, other) if one < other else (other, one), Link.OTHER)

    def device(self, which: str) -> DeviceInventory | None:
        """The device with that number (``"0"``, ``"0:1"``), id (``"gpu_0"``) or UUID; ``None`` if there is none."""
        for device in self.devices:
            if which in device.names:
                return device
        return None


@dataclass(frozen=True)
class WorkerState:
    """One Celery worker as the ledger knows it. ``lease_left_s`` is negative once the lease has run out.

    ``use``: what it measured last, if it measures.
    """

    worker: str
    node: str
    device_id: str
    queue: str
    slots: int
    slots_free: int
    lease_left_s: float
    pid: int
    use: WorkerUse | None = None


@dataclass(frozen=True)
class DeviceState:
    """One device as the ledger knows it. ``state``: ``ready``, ``cordoned``, ``draining`` or ``offline``.

    ``closing``: its worker finishes what it runs, and gets nothing new. ``reason``: why it is cordoned or draining, as
    whoever did that has said; empty where nothing was said. ``memory_free_mb``: what no claim holds, less
    ``withheld_mb``: what is in use there and no claim accounts for, in MB (``withheld``: by whom); it may be below
    zero. ``affinities``: words of tasks' affinity that count as loaded there, the last used first.
    """

    node: str
    device_id: str
    uuid: str
    model: str
    memory_mb: int
    memory_free_mb: int
    state: str
    worker: str | None
    queue: str
    slots: int
    slots_free: int
    allocations: tuple[str, ...]
    closing: bool = False
    reason: str = ""
    withheld_mb: int = 0
    withheld: Withheld = NOTHING
    affinities: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``node/device_id``, the name that commands take."""
        return f"{self.node}/{self.device_id}"

    @property
    def memory_claimed_mb(self) -> int:
        """GPU memory that allocations hold, in MB."""
        return self.memory_mb - self.memory_free_mb - self.withheld_mb

    @property
    def slice_of(self) -> str | None:
        """Of a MIG slice (``gpu_0_mig_1``), the id that its GPU would have (``gpu_0``); ``None`` for all others."""
        gpu, mig, _ = self.device_id.partition("_mig_")
        return gpu if mig else None

    @property
    def is_gpu(self) -> bool:
        """False for the pseudo-device of CPU-only work."""
        return self.device_id != CPU_DEVICE


@dataclass(frozen=True)
class NodeState:
    """One node as the ledger knows it; core ids are real ids.

    ``ram_free_mb``: what no claim holds, less ``ram_withheld_mb``: what is in use and no claim accounts for, in MB
    (``ram_withheld``: by whom).
    """

    node: str
    cpu_cores: tuple[int, ...]
    cpu_cores_free: tuple[int, ...]
    ram_mb: int
    ram_free_mb: int
    state: str
    devices: tuple[DeviceState, ...]
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    ram_withheld_mb: int = 0
    ram_withheld: Withheld = NOTHING

    @property
    def ram_claimed_mb(self) -> int:
        """RAM that allocations hold, in MB."""
        return self.ram_mb - self.ram_free_mb - self.ram_withheld_mb


@dataclass(frozen=True)
class ClusterState:
    """The whole pool at one instant of the ledger's clock (``at``: seconds since the epoch).

    ``paused``: why nothing is granted: ``stopped`` (by an operator), ``paused`` (until all workers have reported after
    a restart of the server), or empty.
    """

    pool: str
    at: float
    nodes: tuple[NodeState, ...]
    workers: tuple[WorkerState, ...]
    delayed: int
    waiting: int
    granted: int
    running: int
    on_hold: int = 0
    paused: str = ""

    @property
    def devices(self) -> tuple[DeviceState, ...]:
        """Every device of every node, pseudo-devices included."""
        return tuple(device for node in self.nodes for device in node.devices)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return asdict(self)
