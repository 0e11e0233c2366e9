"""A second ledger, in plain Python and by brute force: what the real one should do, worked out without any index.

It keeps allocations, devices and nodes in dicts, computes every free amount by summing up, and finds a device by
looking at all of them. It predicts every grant, in order. Core ids alone are taken from the real ledger (after they
were checked): which of several equally good cores it takes is its own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from celery_allocator.model import Kind, NodeInventory, Requirements, Strategy
from tests.property.sketch import Sketch
from tests.property.warmth import MOST_HOPES, Patience, Warmth

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


def pace(ms: float | None) -> str:
    """Run times within a factor of two of each other have one."""
    return "" if ms is None else str(max(0, math.ceil(math.log(max(1, ms) / 1000) / math.log(2))))


def is_bound(req: Requirements) -> bool:
    """Whether it says where it may go."""
    return bool(req.node or req.gpu_model or req.labels or req.anti_affinity)


def is_limited(req: Requirements) -> bool:
    return bool(req.share) or is_bound(req)


@dataclass
class Reference:
    """The whole pool. Operations return the claims they grant, in order."""

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

    # --- placement

    def fits(self, claim: Claim, device: Device) -> bool:
        req, node = claim.req, self.nodes[device.node]
        if self.stopped or device.is_gpu != req.on_gpu or not device.live or device.state != "ready":
            return False
        if claim.kind is Kind.TASK and not (self.takes_tasks(device) and self.slots_free(device) > 0):
            return False
        return (
            self.may_go(req, device)
            and self.memory_free(device) >= amount(req, device)
            and self.cores_free(node) >= req.cpu_cores
            and self.ram_free(node) >= req.ram_mb
        )

    def takes_tasks(self, device: Device) -> bool:
        """Whether its worker does, as far as it has slots."""
        ready = device.live and device.state == "ready" and not self.stopped
        return bool(ready and device.worker and device.open)

    def may_go(self, req: Requirements, device: Device) -> bool:
        """Whether it may go there as things are, besides amounts."""
        word, node = req.anti_affinity, self.nodes[device.node]
        apart = bool(word) and any(c.req.anti_affinity == word for c in self.held() if self.is_on(c, node))
        return self.matches(req, device) and not apart

    def matches(self, req: Requirements, device: Device) -> bool:
        """Whether it is one of those that it may go to."""
        labels = self.nodes[device.node].labels
        return (
            req.node in ("", device.node)
            and req.gpu_model.lower() in device.model.lower()
            and all(labels.get(name) == value for name, value in req.labels)
        )

    def is_on(self, claim: Claim, node: Node) -> bool:
        return claim.device is not None and claim.device.split("/")[0] == node.name

    def choice(self, claim: Claim, within: Node | None = None) -> Device | None:
        """Where it goes now, ``None``: nowhere. ``within``: of one node's devices alone."""
        claim.also = ()
        fitting = [d for d in self.devices.values() if self.fits(claim, d) and within in (None, self.nodes[d.node])]
        if not claim.affine:
            return self.choice_by_strategy(claim, fitting)
        warm = [key for key in self.warmth.where(claim.req.affinity, self.now) if self.devices[key] in fitting]
        if warm:
            return self.devices[warm[0]]
        device = self.choice_by_strategy(claim, fitting)
        if device is None or self.waits_on(claim):
            return None
        by_amounts = (Strategy.BEST_FIT, Strategy.PRIORITY, Strategy.SPREAD)
        return self.coldest(device, fitting) if claim.strategy in by_amounts and not claim.req.share else device

    def coldest(self, device: Device, fitting: list[Device]) -> Device:
        """Of those that are as good by amounts the one where what is loaded was used longest ago."""

        def amounts(d: Device) -> tuple[int, tuple[int, int]]:
            return self.memory_free(d), self.beside(d)

        alike = [d for d in fitting if amounts(d) == amounts(device)]
        return min(alike, key=lambda d: (self.warmth.last_use(d.key) or 0, d is not device, d.order))

    def waits_on(self, claim: Claim) -> bool:
        """Whether it leaves room alone, as a device may come free in time where its word is loaded."""
        stood = [c.joined for c in self.in_state("waiting") if c.lane == claim.lane]
        goal = self.patience.goal(claim.lane, stood, self.now)
        if goal is None:
            return False
        warm = [self.devices[key] for key in self.warmth.where(claim.req.affinity, self.now)]
        hopes = [self.room_from(claim, d) for d in warm if d.is_gpu == claim.req.on_gpu][-MOST_HOPES:]
        if not any(at is not None and (at <= goal or at == math.inf) for at in hopes):
            return False
        self.patience.wait_until(claim.lane, goal)
        return True

    def room_from(self, claim: Claim, device: Device) -> float | None:
        """When it will have room there as far as run times tell, ms (inf: nobody knows); ``None``: never."""
        req, node = claim.req, self.nodes[device.node]
        if not self.takes_tasks(device) or not self.may_go(req, device):
            return None
        held = {c.id: self.expected_end(c) for c in self.on_node(node.name)}
        for at in sorted({float(self.now), *held.values()}):
            ended = [c for c in self.on_node(node.name) if held[c.id] <= at]
            here = [c for c in ended if device.key in (c.device, *c.also)]
            if (
                self.memory_free(device) + sum(c.mb for c in here) >= amount(req, device)
                and self.slots_free(device) + sum(c.kind is Kind.TASK and c.device == device.key for c in here) > 0
                and self.cores_free(node) + sum(c.req.cpu_cores for c in ended) >= req.cpu_cores
                and self.ram_free(node) + sum(c.req.ram_mb for c in ended) >= req.ram_mb
            ):
                return at
        return None

    def expected_end(self, claim: Claim) -> float:
        """ms; inf: nobody knows."""
        since = claim.granted if claim.started is None else claim.started
        run = claim.req.expected_runtime_s * 1000 or self.runs.promised(self.now - since)
        end = math.inf if run is None else since + run
        return max(self.now, end if claim.ends is None else min(end, claim.ends))

    def choice_by_strategy(self, claim: Claim, fitting: list[Device]) -> Device | None:
        if is_limited(claim.req):
            return self.choice_by_score(claim, fitting)
        if claim.req.gpu_count > 1:
            return self.choice_of_several(claim, fitting)
        if claim.strategy is Strategy.SPREAD:
            return max(
                fitting,
                key=lambda d: (
                    self.memory_free(d),
                    self.beside(d)[0] if d.is_gpu else self.cores_free(self.nodes[d.node]),
                    -d.order,
                ),
                default=None,
            )
        if claim.strategy is Strategy.FGD:
            return max(fitting, key=lambda d: (self.gradient(claim, [d]), -d.order), default=None)
        if claim.strategy is Strategy.FIRST_FIT:
            return min(fitting, key=lambda d: d.order, default=None)
        return min(
            fitting,
            key=lambda d: (self.memory_free(d), self.beside(d), d.order),
            default=None,
        )

    def score(self, claim: Claim, devices: list[Device]) -> float:
        """What a strategy says of these, the first registered first; the most is the best."""
        free = [self.memory_free(d) for d in devices]
        if claim.strategy is Strategy.FGD:
            return self.gradient(claim, devices)
        if claim.strategy is Strategy.SPREAD:
            takes = amount(claim.req, devices[0]) if devices[0].is_gpu else 0
            return (min(free) - takes) * 8192 + self.cores_free(self.nodes[devices[0].node])
        if claim.strategy is Strategy.FIRST_FIT or not devices[0].is_gpu:
            return 0
        return -free[0]

    def choice_by_score(self, claim: Claim, fitting: list[Device]) -> Device | None:
        """What asks for more than amounts goes where the score is best, of equals to the first registered."""
        count, sets = claim.req.gpu_count, []
        # A share of several GPUs is one of equally large ones.
        for key in {(d.node, d.memory if claim.req.share and count > 1 else 0) for d in fitting}:
            some = [d for d in fitting if d.node == key[0] and (not key[1] or d.memory == key[1])]
            if count == 1:
                sets += [[d] for d in some]
            elif len(some) >= count:
                some.sort(key=lambda d: (-self.score(claim, [d]), d.order))
                sets.append(sorted(some[:count], key=lambda d: d.order))
        if not sets:
            return None
        best = max(sets, key=lambda some: (self.score(claim, some), -some[0].order))
        claim.also = tuple(d.key for d in best[1:])
        return best[0]

    def choice_of_several(self, claim: Claim, fitting: list[Device]) -> Device | None:
        """The first of the devices; the others are in ``also``. All are of one node."""
        count = claim.req.gpu_count
        nodes = {d.node: [other for other in fitting if other.node == d.node] for d in fitting}
        fitting = [d for d in fitting if len(nodes[d.node]) >= count]
        if not fitting:
            return None
        ranks: dict[Strategy, Callable[[Device], Any]] = {
            Strategy.FIRST_FIT: lambda d: d.order,
            Strategy.SPREAD: lambda d: (
                -self.memory_free(d),
                -(self.beside(d)[0] if d.is_gpu else self.cores_free(self.nodes[d.node])),
                d.order,
            ),
            Strategy.FGD: lambda d: (-self.gradient(claim, [d]), d.order),
        }
        usual = lambda d: (self.memory_free(d), self.beside(d), d.order)  # noqa: E731
        rank = ranks.get(claim.strategy, usual)
        sets = [sorted(sorted(nodes[n], key=rank)[:count], key=lambda d: d.order) for n in {d.node for d in fitting}]
        if claim.strategy is Strategy.FGD:
            best = min(sets, key=lambda some: (-self.gradient(claim, some), some[0].order))
        else:
            node = min(fitting, key=rank).node
            (best,) = (some for some in sets if some[0].node == node)
        claim.also = tuple(d.key for d in best[1:])
        return best[0]

    def gradient(self, claim: Claim, devices: list[Device]) -> int:
        """Weng et al., ATC 2023: how little the node's fragmentation grows, from 0 to 100."""
        node = self.nodes[devices[0].node]
        gpus = [d for d in self.devices.values() if d.node == node.name and d.is_gpu and d.live and d.state == "ready"]
        cores = self.cores_free(node)
        idle = {d.key: self.memory_free(d) for d in gpus}
        before = self.fragmentation(cores, idle)
        for device in devices:
            if device.is_gpu:
                idle[device.key] -= claim.req.gpu_memory_mb
        after = self.fragmentation(cores - claim.req.cpu_cores, idle)
        return int(100 / (1 + math.exp((after - before) / 1000)) + 1e-6)

    def fragmentation(self, cores: int, idle: dict[str, int]) -> float:
        """Thousandths of GPUs that what is popular could not use, on a node with this much free."""
        part = {key: 1000 * max(0, free) / self.devices[key].memory for key, free in idle.items()}
        total, covered, found = sum(self.demand.values()), 0.0, 0.0
        for shape in sorted(self.demand, key=lambda s: (self.demand[s], s), reverse=True):
            if covered >= 0.95 * total:
                break
            covered += self.demand[shape]
            memory, wanted, gpus = map(int, shape.split(":"))
            enough = [key for key, free in idle.items() if free >= memory]
            hosts = memory > 0 and cores >= wanted and len(enough) >= gpus
            lost = [key for key in idle if not (hosts and key in enough)]
            found += self.demand[shape] / total * sum(part[key] for key in lost)
        return found

    def learn(self, claim: Claim) -> None:
        """A submission under fgd: the latest count most."""
        if claim.strategy is Strategy.FGD:
            shape = f"{claim.req.gpu_memory_mb}:{claim.req.cpu_cores}:{claim.req.gpu_count}"
            self.demand[shape] = self.demand.get(shape, 0.0) + self.unit
            self.unit *= 1 + 1 / 2000

    def never(self, req: Requirements) -> tuple[str, int | str] | None:
        """The dimension no known device could ever meet, and the largest that exists."""
        known = [d for d in self.devices.values() if d.known]
        if is_bound(req):
            of_kind = [d for d in known if d.is_gpu == req.on_gpu]
            steps = [("node", Requirements(node=req.node))] if req.node else []
            steps += [("gpu_model", Requirements(1, gpu_model=req.gpu_model))] if req.gpu_model else []
            steps += [(f"label {pair[0]}", Requirements(labels=(pair,))) for pair in req.labels]
            for name, one in steps:
                left = [d for d in of_kind if self.matches(one, d)]
                if of_kind and not left:
                    return name, ", ".join(sorted({self.told(name, d) for d in of_kind} - {""}))
                of_kind = left
            known = of_kind or known
        sizes = [(d.memory, len(self.nodes[d.node].cores), self.nodes[d.node].ram) for d in known]
        wanted = (max(1, req.gpu_memory_mb) if req.share else req.gpu_memory_mb, req.cpu_cores, req.ram_mb)
        for i, name in enumerate(("gpu_memory_mb", "cpu_cores", "ram_mb")):
            if not sizes:
                return None
            largest = max(size[i] for size in sizes)
            sizes = [size for size in sizes if size[i] >= wanted[i]]
            if not sizes:
                return ("gpu", 0) if req.share and i == 0 and not largest else (name, largest)
        fitting = [
            (d.node, d.memory if req.share else 0)
            for d in known
            if d.memory >= wanted[0]
            and len(self.nodes[d.node].cores) >= req.cpu_cores
            and self.nodes[d.node].ram >= req.ram_mb
        ]
        most = max((fitting.count(place) for place in fitting), default=0)
        return ("gpu_count", most) if sizes and req.gpu_count > most else None

    def told(self, limit: str, device: Device) -> str:
        if limit == "node":
            return device.node
        name = limit.partition(" ")[2]
        return self.nodes[device.node].labels.get(name, "") if name else device.model

    def grant(self, claim: Claim, device: Device) -> Claim:
        claim.device, claim.cores, claim.token = device.key, None, -1
        claim.mb = amount(claim.req, device)
        claim.granted, claim.started = self.now, None
        self.leaves_line(claim)
        if claim.affine:
            claim.hit = claim.req.affinity in self.warmth.loaded(device.key, self.now)
            self.warmth.use(device.key, claim.req.affinity, device.slots, self.now)
        if claim.kind is Kind.TASK:
            claim.state, claim.due = "granted", self.now + DEADLINE_MS
        else:
            claim.state, claim.ends, claim.started = "running", self.now + claim.ttl, self.now
        return claim

    def sweep(self, within: Node | None = None, lanes: set[Hashable] | None = None) -> list[Claim]:
        """In order of priority, then arrival, whatever fits; within a lane nobody is passed by.

        ``within``: one node, where something was freed; ``lanes``: those of them alone.
        """
        granted, stuck = [], set()
        for claim in self.line():
            if claim.lane in stuck or (lanes is not None and claim.lane not in lanes):
                continue
            device = self.choice(claim, within)
            if device is None:
                stuck.add(claim.lane)
            else:
                granted.append(self.grant(claim, device))
        return granted

    def leaves_line(self, claim: Claim) -> None:
        """It has been granted, is on hold, or has ended: with the last of a lane its patience ends."""
        if not any(c.lane == claim.lane for c in self.in_state("waiting") if c is not claim):
            self.patience.drop(claim.lane)

    # --- the life of an allocation

    def submit(self, claim: Claim) -> list[Claim]:
        self.seq += 1
        claim.seq = self.seq
        claim.pace = pace(claim.req.expected_runtime_s * 1000 or self.runs.promised())
        self.claims[claim.id] = claim
        if claim.eta is not None and claim.eta > self.now:
            claim.state = "delayed"
            self.learn(claim)
            return []
        granted = self.arrive(claim)
        self.learn(claim)
        return granted

    def arrive(self, claim: Claim) -> list[Claim]:
        if claim.kind is Kind.MANUAL:
            claim.ends = self.now + claim.ttl
        return self.place_or_wait(claim)

    def place_or_wait(self, claim: Claim) -> list[Claim]:
        """It goes somewhere at once, unless it is behind others of its own lane."""
        claim.state = "coming"
        lane = [c for c in self.line() if c.lane == claim.lane]
        device = None
        if not lane or claim.place_in_line < lane[0].place_in_line:
            device = self.choice(claim)
        claim.state, claim.joined = "waiting", self.now
        return [self.grant(claim, device)] if device is not None else []

    def end(self, claim: Claim, outcome: str, *, buried: bool) -> None:
        del self.claims[claim.id]
        self.gives_back(claim)
        self.leaves_line(claim)
        self.spend(claim)
        if buried:
            self.buried[claim.id] = outcome
        else:
            self.ended.add(claim.id)

    def spend(self, claim: Claim) -> None:
        if claim.token:
            self.spent.append((claim.id, claim.token))

    def gives_back(self, claim: Claim) -> None:
        """What it held; and what it leaves loaded there."""
        if claim.device is None or not claim.affine:
            return
        if claim.state == "running":
            word, device = claim.req.affinity, self.devices[claim.device]
            self.warmth.use(device.key, word, device.slots, self.now)
        elif not claim.hit:
            self.warmth.forget(claim.device, claim.req.affinity)

    def back_in_line(self, claim: Claim) -> None:
        self.gives_back(claim)
        self.spend(claim)
        claim.state, claim.device, claim.token, claim.cores, claim.nonce = "waiting", None, 0, None, ""
        claim.joined, claim.started = self.now, None
        claim.also, claim.mb = (), 0
        if claim.kind is Kind.MANUAL:
            claim.ends = self.now + claim.ttl

    def release(self, claim: Claim, outcome: str) -> list[Claim]:
        assert claim.device is not None
        node = self.nodes[claim.device.split("/")[0]]
        if outcome == "requeue":
            self.back_in_line(claim)
            granted = self.sweep()
        else:
            if outcome == "success" and claim.started is not None:
                self.runs.learn(max(0, self.now - claim.started))
            self.end(claim, outcome, buried=False)
            granted = self.sweep(node)
        if claim.kind is Kind.MANUAL:
            self.close_if_idle(node)
        return granted

    def grow(self, claim: Claim, growth: float, most: int) -> tuple[str, list[Claim]]:
        """It ran out of GPU memory. Returns why it is not granted again with more, or else what is granted by that."""
        now = claim.mb
        if claim.kind is Kind.MANUAL:
            return "not_running", []
        if not now:
            return "no_gpu", []
        if claim.grown >= most:
            return "spent", []
        wanted = math.ceil(now * growth)
        sizes = {wanted, *(d.memory for d in self.devices.values() if d.known and d.memory < wanted)}
        larger = [mb for mb in sizes if mb > now and self.never(replace(claim.req, gpu_memory_mb=mb)) is None]
        if not larger:
            return "largest", []
        self.back_in_line(claim)
        claim.req, claim.grown = replace(claim.req, gpu_memory_mb=max(larger)), claim.grown + 1
        return "", self.sweep()

    def cancel(self, claim: Claim) -> list[Claim]:
        node = self.nodes[claim.device.split("/")[0]] if claim.device is not None else None
        self.end(claim, "cancelled", buried=claim.kind is Kind.TASK)
        granted = self.sweep(node) if node is not None else []
        if node is not None and claim.kind is Kind.MANUAL:
            self.close_if_idle(node)
        return granted

    def close_if_idle(self, node: Node) -> None:
        devices = [d for d in self.devices.values() if d.node == node.name]
        if node.lease is not None and not any(d.worker or self.on(d.key) for d in devices):
            node.lease = self.now

    # --- what operators do to one allocation

    def hold(self, claim: Claim) -> None:
        if claim.kind is Kind.MANUAL and claim.state == "delayed":
            claim.ends = self.now + claim.ttl
        claim.state = "on_hold"
        self.leaves_line(claim)

    def unhold(self, claim: Claim) -> list[Claim]:
        if claim.eta is None or claim.eta <= self.now:
            return self.place_or_wait(claim)
        claim.state, claim.ends = "delayed", None
        return []

    def prioritize(self, claim: Claim, priority: int) -> None:
        claim.req, claim.front = replace(claim.req, priority=priority), None

    def to_front(self, claim: Claim) -> None:
        """Before whoever is first, in a place that no arrival has."""
        first = next(iter(self.line()), claim)
        if first is not claim and first.place_in_line <= claim.place_in_line:
            claim.front = first.place_in_line - (2 if first.front is not None else 1)

    def restore(self, was: Claim) -> tuple[str, list[Claim]]:
        """Bring back what an operator ended. Returns why not, or else what is granted by that."""
        if was.exp is not None and was.exp <= self.now and was.state != "running":
            return "expired", []
        device = self.devices.get(was.device or "")
        others = [self.devices[key] for key in was.also]
        live = device is not None and all(d.live for d in (device, *others))
        free = device is not None and live and all(self.vacant(was, d) for d in (device, *others))
        if device is not None and was.kind is Kind.MANUAL and not free:
            return "taken|not there any more" if live else "offline", []
        claim = self.claims[was.id] = copy(was)
        self.buried.pop(was.id, None)
        self.ended.discard(was.id)
        claim.token = 0
        if device is None:
            if claim.kind is Kind.MANUAL and claim.state != "delayed":
                claim.ends = self.now + claim.ttl
            return "", self.place_or_wait(claim) if claim.state == "waiting" else []
        if not free:
            claim.device = None  # it held that before it was ended
            self.back_in_line(claim)
            return "", self.sweep()
        self.grant(claim, device)
        claim.cores, claim.mb = was.cores, was.mb
        if claim.kind is Kind.MANUAL:
            node = self.nodes[device.node]
            node.lease = None if node.lease is None else max(node.lease, self.now + claim.ttl)
        return "", [claim]

    def vacant(self, claim: Claim, device: Device) -> bool:
        """Whether the place that it had is free: the device as it is now, and these very cores."""
        req, node = claim.req, self.nodes[device.node]
        served = device.worker and device.open and self.slots_free(device) > 0 and device.state != "draining"
        held = frozenset().union(*(c.cores or frozenset() for c in self.on_node(node.name)))
        return (
            bool(served or claim.kind is Kind.MANUAL)
            and self.memory_free(device) >= claim.mb
            and self.ram_free(node) >= req.ram_mb
            and (claim.cores or frozenset()) <= node.cores - held
        )

    # --- nodes and workers

    def register_node(self, inventory: NodeInventory, lease: int) -> list[Claim]:
        node = self.nodes.setdefault(inventory.node, Node(inventory.node))
        node.lease = max(node.lease or 0, self.now + lease)
        node.cores, node.ram = frozenset(inventory.cpu_cores), inventory.ram_mb
        node.labels = dict(inventory.labels)
        held = {core for c in self.on_node(node.name) for core in c.cores or ()}
        told = (node.cores, max((*node.cores, *held), default=-1), node.ram, node.labels)
        changed, node.told = told != node.told, told
        models = {f"{node.name}/{d.device_id}": d.model for d in inventory.devices}
        named = {f"{node.name}/{d.device_id}": (d.memory_mb, frozenset(d.cpu_affinity)) for d in inventory.devices}
        named[f"{node.name}/cpu"] = (0, frozenset())
        for key, (memory, near) in named.items():
            if key not in self.devices:
                self.devices[key] = Device(key, len(self.devices), memory, node.state, live=False)
            device = self.devices[key]
            changed = changed or not device.live or (device.memory, device.near) != (memory, near)
            device.memory, device.near, device.live, device.known = memory, near, True, True
            device.model = models.get(key, "")
        for device in self.devices.values():
            if device.node == node.name and device.key not in named and not device.worker:
                changed = changed or device.live
                device.live = device.known = False
                self.unwithhold(device)
        return self.sweep(node) if changed else []

    def register_worker(self, name: str, incarnation: str, key: str, slots: int, lease: int) -> list[Claim]:
        device = self.devices[key]
        old = self.workers.get(name)
        if device.worker and device.incarnation != incarnation:
            self.drop_worker(device.worker)
        if old is not None and (old.incarnation != incarnation or old.device != key):
            self.drop_worker(name)
        self.workers[name] = Worker(incarnation, key, self.now + lease)
        node = self.nodes[device.node]
        node.lease = max(node.lease or 0, self.now + lease)
        if device.told_by not in (None, incarnation):
            self.unwithhold(device)
        device.worker, device.incarnation, device.slots = name, incarnation, slots
        device.open = device.live = device.known = True
        return self.sweep()

    def drop_worker(self, name: str) -> None:
        worker = self.workers.pop(name, None)
        if worker is None:
            return
        device = self.devices[worker.device]
        if device.worker != name:
            return
        for claim in self.on(device.key):
            if claim.kind is not Kind.TASK or claim.device != device.key:
                continue
            if claim.state == "granted":
                self.back_in_line(claim)
            elif claim.late and claim.losses < MAX_LOSSES:
                claim.losses += 1
                self.back_in_line(claim)
            else:
                # A retry under the same task id will write the result.
                follows = any(c.task_id == claim.task_id and c is not claim for c in self.claims.values())
                self.end(claim, "lost", buried=not follows)
        if device.told_by == device.incarnation:
            self.unwithhold(device)
        device.worker, device.incarnation, device.open, device.slots = "", "", False, 0
        self.warmth.clear(device.key)

    def withhold(
        self, name: str, incarnation: str, key: str, registering: bool, gpu: int | None, ram: tuple[int, int] | None
    ) -> list[Claim] | None:
        """What a worker has measured. ``gpu``: foreign; ``ram``: used of the node, and by the worker."""
        device = self.devices[key]
        lives = device.worker in self.workers and self.workers[device.worker].lease > self.now
        if registering and device.worker not in ("", name) and lives:
            return None
        if not registering and (device.worker, device.incarnation) != (name, incarnation):
            return None
        device.told_by = incarnation
        node = self.nodes[device.node]
        before = device.withheld, node.withheld
        if gpu is not None and device.is_gpu:
            others = [c for c in self.on(key) if c.kind is Kind.MANUAL or c.device != key]
            device.withheld = max(0, gpu - sum(c.mb for c in others))
        if ram is not None:
            used, device.ram_ours = ram
            ours = sum(d.ram_ours or 0 for d in self.devices.values() if d.node == node.name)
            by_hand = sum(c.req.ram_mb for c in self.on_node(node.name) if c.kind is Kind.MANUAL)
            node.withheld = max(0, used - ours - by_hand)
        return self.sweep(node) if device.withheld < before[0] or node.withheld < before[1] else []

    def unwithhold(self, device: Device) -> None:
        """Who measured it is gone."""
        device.withheld, device.told_by, device.ram_ours = 0, None, None
        node = self.nodes[device.node]
        if all(d.ram_ours is None for d in self.devices.values() if d.node == node.name):
            node.withheld = 0

    def withdraw_unstarted(self, key: str, *, served: bool = False) -> None:
        """``served``: what the device's worker would run; else also what is on others with it."""
        for claim in self.on(key):
            if claim.state == "granted" and (claim.device == key or not served):
                self.back_in_line(claim)

    def set_state(self, target: str, states: str | dict[str, str]) -> list[Claim]:
        """``states``: one for all, or of the node and each device; what is not named gets its node's."""
        of = states if isinstance(states, dict) else {}
        common = of.get(target, "") if isinstance(states, dict) else states
        if "/" not in target:
            self.nodes[target].state = common
        opened = False
        for device in self.devices.values():
            if target in (device.key, device.node):
                state = of.get(device.key, common)
                if state == "draining":
                    self.withdraw_unstarted(device.key)
                device.state = state
                opened = opened or state != "cordoned"
        return self.sweep() if opened else []

    def pause(self, stop: bool) -> list[Claim]:
        self.stopped = stop
        return [] if stop else self.sweep()

    # --- maintenance

    def repair(self) -> list[Claim]:
        for claim in self.line():
            claim.joined = self.now
            self.patience.drop(claim.lane)
        return self.sweep()

    def tick(self, publishes: bool) -> tuple[list[Claim], list[Claim], set[str]]:
        """Returns the new grants, the earlier ones to be published again, the workers lost."""
        lost = {name for name, worker in self.workers.items() if worker.lease <= self.now}
        for name in lost:
            self.drop_worker(name)
        for node in self.nodes.values():
            if node.lease is not None and node.lease <= self.now:
                node.lease = None
                for device in self.devices.values():
                    if device.node == node.name and device.live:
                        device.live = False
                        self.unwithhold(device)
        emptied, moved = [], bool(lost)
        for claim in list(self.claims.values()):
            if claim.ends is not None and claim.ends <= self.now and claim.state in ("waiting", "on_hold", "running"):
                if claim.device is not None:
                    emptied.append(self.nodes[claim.device.split("/")[0]])
                self.end(claim, "ttl", buried=False)
                moved = True
        for claim in list(self.claims.values()):
            unstarted = claim.state in ("waiting", "delayed", "on_hold", "granted")
            if claim.exp is not None and claim.exp <= self.now and unstarted:
                moved = moved or claim.state == "granted"
                self.end(claim, "expired", buried=claim.kind is Kind.TASK)
        granted = self.sweep() if moved else []
        granted += self.sweep(lanes=self.patience.due(self.now))
        for node in emptied:
            self.close_if_idle(node)
        for claim in sorted(self.in_state("delayed"), key=lambda c: (c.eta, c.id)):
            if claim.eta is not None and claim.eta <= self.now:
                granted += self.arrive(claim)
        again = [c for c in self.in_state("granted") if publishes and c.due <= self.now and c.token >= 0]
        for claim in again:
            claim.due = self.now + DEADLINE_MS
        return granted, again, lost
