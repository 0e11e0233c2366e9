"""What there is (inventory) and what the ledger says of it (cluster state)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.model.use import WorkerUse

#: Name of the pseudo-device that CPU-only work of a node runs under.
CPU_DEVICE = "cpu"


@dataclass(frozen=True)
class DeviceInventory:
    """One GPU of this host, as found. ``memory_mb``: its total; ``cpu_affinity``: core ids near it (may be empty)."""

    device_id: str  # "gpu_0"
    index: int
    uuid: str
    model: str
    memory_mb: int
    cpu_affinity: tuple[int, ...] = ()
    simulated: bool = False


@dataclass(frozen=True)
class NodeInventory:
    """One host, as found: the core ids it offers, its RAM and its devices."""

    node: str
    cpu_cores: tuple[int, ...]
    ram_mb: int
    devices: tuple[DeviceInventory, ...] = ()

    def device(self, which: str) -> DeviceInventory | None:
        """The device with that index (``"0"``), id (``"gpu_0"``) or UUID; ``None`` if there is none."""
        for device in self.devices:
            if which in (str(device.index), device.device_id, device.uuid):
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

    ``closing``: its worker finishes what it runs, and gets nothing new.
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

    @property
    def key(self) -> str:
        """``node/device_id``, the name that commands take."""
        return f"{self.node}/{self.device_id}"

    @property
    def is_gpu(self) -> bool:
        """False for the pseudo-device of CPU-only work."""
        return self.device_id != CPU_DEVICE


@dataclass(frozen=True)
class NodeState:
    """One node as the ledger knows it; core ids are real ids."""

    node: str
    cpu_cores: tuple[int, ...]
    cpu_cores_free: tuple[int, ...]
    ram_mb: int
    ram_free_mb: int
    state: str
    devices: tuple[DeviceState, ...]


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
