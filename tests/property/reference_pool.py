"""What a second ledger in plain Python keeps: allocations, devices and nodes in dicts, every free amount a sum."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace

from celery_allocator.model import Kind, Requirements, Strategy
from tests.property.sketch import Sketch
from tests.property.warmth import Patience, Warmth

DEADLINE_MS = 10_000
MAX_LOSSES = 2
DECAY = 0.02  # of run times


@dataclass
class Claim:
    """One allocation. Times in ms."""

    id: str
    task_id: str
    req: Requirements
    strategy: Strategy
    kind: Kind
    seq: int
    ttl: int
    eta: int | None
    exp: int | None
    state: str = "waiting"
    device: str | None = None
    also: tuple[str, ...] = ()  # the other devices of a claim on several
    mb: int = 0  # GPU memory that it holds of each device
    token: int = 0
    cores: frozenset[int] | None = None  # None: granted just now, ids not read yet
    nonce: str = ""
    late: bool = False
    losses: int = 0
    grown: int = 0
    ends: int | None = None  # by hand: end of TTL
    due: int = 0  # granted: when it is published again
    front: int | None = None  # its place, if it was moved to the front
    pace: str = ""  # about how long it will run, as it was known when it came
    joined: int = 0  # waiting: since when
    granted: int = 0
    started: int | None = None
    hit: bool = False  # its word was loaded where it was granted

    @property
    def affine(self) -> bool:
        """Whether it is for the ledger to say where its word is loaded: a task on one GPU, or without one."""
        return bool(self.req.affinity) and self.kind is Kind.TASK and self.req.gpu_count == 1

    @property
    def lane(self) -> Hashable:
        """Those of one lane ask for the same, and are expected to run about as long."""
        return replace(self.req, priority=0, expected_runtime_s=0), self.kind, self.pace

    @property
    def place_in_line(self) -> int:
        return 2 * self.seq - self.req.priority * 2**43 if self.front is None else self.front


@dataclass
class Device:
    """One GPU or the pseudo-device of a node."""

    key: str
    order: int
    memory: int
    state: str
    model: str = ""
    near: frozenset[int] = frozenset()
    live: bool = True
    known: bool = True
    worker: str = ""
    incarnation: str = ""
    open: bool = False
    slots: int = 0
    withheld: int = 0
    told_by: str | None = None  # the incarnation that said what is withheld
    ram_ours: int | None = None  # what its worker has said of the node's RAM

    @property
    def node(self) -> str:
        return self.key.split("/")[0]

    @property
    def is_gpu(self) -> bool:
        return not self.key.endswith("/cpu")


@dataclass
class Node:
    """One host. ``lease``: its end in ms, None once it was dropped."""

    name: str
    cores: frozenset[int] = frozenset()
    ram: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    state: str = "ready"
    lease: int | None = None
    withheld: int = 0
    told: object = None  # what its last registration said of it, as a whole


@dataclass
class Worker:
    incarnation: str
    device: str
    lease: int


def amount(req: Requirements, device: Device) -> int:
    """GPU memory that it takes of a device: a share is one of its memory."""
    return max(req.gpu_memory_mb, -(-device.memory * req.share // 1000)) if device.is_gpu else 0


def is_bound(req: Requirements) -> bool:
    """Whether it says where it may go."""
    return bool(req.node or req.gpu_model or req.labels or req.anti_affinity)


def is_limited(req: Requirements) -> bool:
    return bool(req.share) or is_bound(req)


@dataclass
class Pool:
    """The whole of it."""

    now: int = 0
    nodes: dict[str, Node] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    buried: dict[str, str] = field(default_factory=dict)  # id → outcome, result not written yet
    ended: set[str] = field(default_factory=set)
    spent: list[tuple[str, int]] = field(default_factory=list)  # id and token of grants that are over
    seq: int = 0
    stopped: bool = False  # by an operator
    runs: Sketch = field(default_factory=lambda: Sketch(DECAY))  # how long those took that succeeded
    warmth: Warmth = field(default_factory=Warmth)
    patience: Patience = field(default_factory=Patience)
    demand: dict[str, float] = field(default_factory=dict)  # shapes asked for under fgd
    unit: float = 1.0  # how much the next of them counts

    # --- sums

    def held(self) -> Iterator[Claim]:
        return (c for c in self.claims.values() if c.state in ("granted", "running"))

    def on(self, key: str) -> list[Claim]:
        return [c for c in self.held() if c.device == key or key in c.also]

    def on_node(self, name: str) -> list[Claim]:
        return [c for c in self.held() if c.device is not None and c.device.split("/")[0] == name]

    def in_state(self, state: str) -> list[Claim]:
        return [c for c in self.claims.values() if c.state == state]

    def line(self) -> list[Claim]:
        return sorted(self.in_state("waiting"), key=lambda c: (c.place_in_line, c.id))

    def memory_free(self, device: Device) -> int:
        return device.memory - device.withheld - sum(c.mb for c in self.on(device.key))

    def slots_free(self, device: Device) -> int:
        """One on several GPUs takes a slot of the first one's worker."""
        return device.slots - sum(c.kind is Kind.TASK and c.device == device.key for c in self.on(device.key))

    def ram_free(self, node: Node) -> int:
        return node.ram - node.withheld - sum(c.req.ram_mb for c in self.on_node(node.name))

    def beside(self, device: Device) -> tuple[int, int]:
        """What decides between devices with equally much memory free: that of all GPUs of the node; then its cores."""
        together = sum(max(0, self.memory_free(d)) for d in self.devices.values() if d.node == device.node and d.is_gpu)
        return together, 0 if device.is_gpu else self.cores_free(self.nodes[device.node])

    def cores_free(self, node: Node) -> int:
        claims = self.on_node(node.name)
        known = frozenset().union(*(c.cores for c in claims if c.cores is not None))
        return len(node.cores - known) - sum(c.req.cpu_cores for c in claims if c.cores is None)
