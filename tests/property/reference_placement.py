"""Where the reference places a claim: of all devices that fit, looked at one by one, the one that the rules say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from celery_allocator.model import Kind, Requirements, Strategy
from tests.property.reference_pool import Claim, Device, Node, Pool, amount, is_bound, is_limited
from tests.property.warmth import MOST_HOPES


class Placement(Pool):
    """Whether and where a claim goes, in time, or never."""

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
