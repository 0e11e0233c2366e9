"""Random operations with tenants, caps, run times and reservations on the real ledger, on a clock that is moved.

After every step: the ledger's own check and ours find nothing; no grant lifts a tenant above its caps; there is one
reservation at most and its holder waits; and no grant puts off the time at which the holder can start, worked out by
brute force. After every tick whoever waits beside room that it fits has a reason. At the end everybody gets its turn.
``FAIRNESS_EXAMPLES`` and ``FAIRNESS_STEPS`` set how long to look.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from celery_allocator.ledger import Ledger, Options, keys
from celery_allocator.ledger.foretelling import Reservation
from celery_allocator.model import (
    Allocation,
    ClusterState,
    DeviceInventory,
    DeviceState,
    Kind,
    NodeInventory,
    NodeState,
    Quota,
    Requirements,
    Shape,
    Strategy,
)
from tests.property.running import run_machine
from tests.property.sketch import Sketch, pace
from tests.support.ledger_checks import assert_empty, broken
from tests.support.redis_server import RedisServer

EXAMPLES = int(os.environ.get("FAIRNESS_EXAMPLES", "12"))
STEPS = int(os.environ.get("FAIRNESS_STEPS", "25"))

_names = itertools.count()

LEASE_S = 1e9
DECAY = 0.02
TENANTS = ("", "a", "b", "c")
NODES = {"n1": (10, 10), "n2": (16,)}
CORES, RAM = 6, 20
DEVICES = [
    f"{node}/{device}" for node, gpus in NODES.items() for device in (*(f"gpu_{i}" for i in range(len(gpus))), "cpu")
]

needs = st.builds(
    Requirements,
    gpu_memory_mb=st.sampled_from([0, 2, 3, 5, 5, 8, 10, 16, 40]),
    cpu_cores=st.sampled_from([1, 1, 2, 4, 6]),
    ram_mb=st.sampled_from([0, 0, 5, 15]),
    priority=st.sampled_from([0, 0, 0, 1, 3]),
    tenant=st.sampled_from(TENANTS),
    expected_runtime_s=st.sampled_from([0, 0, 5, 20, 21, 100]),
    affinity=st.sampled_from(["", "", "", "red", "green"]),
)
#: What takes most of a device, and is passed by others.
large = st.builds(
    Requirements,
    gpu_memory_mb=st.sampled_from([8, 10, 16, 9]),
    cpu_cores=st.sampled_from([1, 4, 6]),
    ram_mb=st.sampled_from([0, 15]),
    tenant=st.sampled_from(TENANTS),
    expected_runtime_s=st.sampled_from([0, 20]),
)
small = st.builds(
    Requirements,
    gpu_memory_mb=st.sampled_from([1, 2, 3, 0]),
    cpu_cores=st.sampled_from([1, 2]),
    ram_mb=st.sampled_from([0, 5]),
    tenant=st.sampled_from(TENANTS),
    expected_runtime_s=st.sampled_from([0, 5, 100]),
    affinity=st.sampled_from(["", "", "", "red", "green"]),
)
caps = st.builds(
    Quota,
    weight=st.sampled_from([1.0, 2.0, 0.5]),
    gpu_memory_mb=st.sampled_from([None, None, 4, 12]),
    cpu_cores=st.sampled_from([None, None, 3]),
    ram_mb=st.sampled_from([None, None, 15]),
    tasks=st.sampled_from([None, None, 1, 3]),
)
names = st.sampled_from(["quick", "slow", "new"])


@dataclass(frozen=True)
class Fact:
    """What was said of one allocation, and what was known of its name when it came."""

    name: str
    pace: str


@dataclass(frozen=True)
class Room:
    """What of one device and its node is free."""

    gpu: int
    slots: int
    cores: int
    ram: int

    def holds(self, need: Requirements, kind: Kind) -> bool:
        return (
            self.gpu >= need.gpu_memory_mb
            and self.cores >= need.cpu_cores
            and self.ram >= need.ram_mb
            and (kind is Kind.MANUAL or self.slots >= 1)
        )


def device_key(a: Allocation) -> str:
    return f"{a.node}/{a.device_id}"


class FairnessMachine(RuleBasedStateMachine):
    """One pool, from its first node to its end."""

    client: redis.Redis

    @initialize(
        backfill=st.sampled_from(["easy", "easy", "easy", "easy", "greedy", "none"]),
        age_weight=st.sampled_from([0.0, 0.0, 1.0, 60.0]),
        max_bypass=st.sampled_from([0, 2, 5]),
        max_bypass_s=st.sampled_from([5.0, 60.0]),
        affinity_wait_s=st.sampled_from([0.0, 5.0, 30.0]),
        slots=st.sampled_from([2, 2, 3, 5]),
    )
    def begin(self, slots: int, **options: Any) -> None:
        self.now = 1_790_000_000_000
        self.options = Options(max_losses=2, events_maxlen=1000, runtime_decay=DECAY, ttl_s=100, **options)
        self.pool = f"fairness-{os.getpid()}-{next(_names)}"
        self.ledger = Ledger(self.client, self.pool, clock=lambda: self.now / 1000, options=self.options)
        self.names = itertools.count()
        self.facts: dict[str, Fact] = {}
        self.sketches: dict[str, Sketch] = defaultdict(lambda: Sketch(DECAY))
        self.quotas: dict[str, Quota] = {}
        self.slots = slots
        self.tokens: dict[str, int] = {}
        self.kept: Reservation | None = None
        for node in NODES:
            self.node_(node, 0)
        for device in DEVICES:
            self.worker_(device)
        self.after()

    # --- rules

    @rule(
        need=needs,
        name=names,
        kind=st.sampled_from([Kind.TASK, Kind.TASK, Kind.TASK, Kind.MANUAL]),
        strategy=st.sampled_from(Strategy),
        eta_s=st.sampled_from([None, None, None, 3]),
        ttl_s=st.sampled_from([8, 60]),
        expires_s=st.sampled_from([None, None, 10]),
    )
    def submit(self, need: Requirements, name: str, **how: Any) -> None:
        self.submit_(need, name, **how)
        self.after()

    @rule(needs=st.lists(small, min_size=1, max_size=5), name=names)
    def small_ones(self, needs: list[Requirements], name: str) -> None:
        for need in needs:
            self.submit_(need, name)
            self.after()

    @rule(needs=st.lists(large, min_size=1, max_size=3), name=names)
    def large_ones(self, needs: list[Requirements], name: str) -> None:
        for need in needs:
            self.submit_(need, name)
            self.after()

    @rule(
        holds=st.lists(st.sampled_from([0, 5, 20, 100]), min_size=3, max_size=3),
        cores=st.sampled_from([1, 2]),
        ram=st.sampled_from([0, 7]),
        big=st.sampled_from([1, 1, 5]),
        tenant=st.sampled_from(["", "", "a"]),
        needs=st.lists(small, min_size=1, max_size=6),
        name=names,
        seconds=st.sampled_from([0, 1]),
    )
    def a_squeeze(
        self,
        holds: list[int],
        cores: int,
        ram: int,
        big: int,
        tenant: str,
        needs: list[Requirements],
        name: str,
        seconds: int,
    ) -> None:
        """Every GPU is held for more than half, a big one waits, and small ones come for the rest."""
        for seconds_held, memory in zip(holds, (10, 6, 6), strict=True):
            self.submit_(Requirements(memory, cores, ram, tenant=tenant, expected_runtime_s=seconds_held), name)
        self.after()
        self.start_()
        self.now += seconds * 1000
        self.submit_(Requirements(9, big, ram, tenant=tenant), name)
        self.after()
        for need in needs:
            self.submit_(need, name)
            self.after()

    def submit_(
        self,
        need: Requirements,
        name: str,
        kind: Kind = Kind.TASK,
        strategy: Strategy = Strategy.BEST_FIT,
        eta_s: int | None = None,
        ttl_s: int = 60,
        expires_s: int | None = None,
    ) -> None:
        if kind is Kind.MANUAL:
            name = "by hand"
        which = f"c{next(self.names):03}"
        run = need.expected_runtime_s * 1000 or self.sketches[name].promised()
        self.facts[which] = Fact(name, pace(run))
        self.ledger.submit(
            which,
            which,
            name,
            need,
            strategy=strategy,
            kind=kind,
            message=b"" if kind is Kind.MANUAL else b"message",
            eta_at=None if eta_s is None else self.now / 1000 + eta_s,
            expires_at=None if expires_s is None else self.now / 1000 + expires_s,
            ttl_s=ttl_s,
            on_never="wait",
        )

    @rule()
    def start_all(self) -> None:
        self.start_()
        self.after()

    def start_(self) -> None:
        for a in self.ledger.held():
            if a.state.value == "granted":
                self.ledger.start(a.allocation_id, a.token, f"w.{device_key(a)}", "one", "nonce", True)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "success", "success", "failure", "requeue"]))
    def release(self, data: st.DataObject, outcome: str) -> None:
        self.release_(data.draw(st.sampled_from(sorted(self.tokens))), outcome)
        self.after()

    @precondition(lambda self: self.tokens)
    @rule(seconds=st.sampled_from([0, 3, 4, 25]), count=st.integers(1, 3))
    def the_oldest_succeed(self, seconds: int, count: int) -> None:
        self.start_()
        self.now += seconds * 1000
        self.after()
        for name in sorted(self.tokens, key=lambda name: self.tokens[name])[:count]:
            self.release_(name, "success")
            self.after()

    def release_(self, name: str, outcome: str) -> None:
        a = self.ledger.get(name)
        if outcome == "success" and a.started_at is not None:
            self.sketches[self.facts[name].name].learn(max(0, self.now - round(a.started_at * 1000)))
        assert self.ledger.release(name, None, outcome).done

    @precondition(lambda self: self.facts)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.ledger.cancel(data.draw(st.sampled_from(self.waiting_() or sorted(self.facts))))
        self.after()

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        if waiting := self.waiting_():
            self.ledger.hold(data.draw(st.sampled_from(waiting)))
            self.after()

    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        if held := [a.allocation_id for a in self.ledger.on_hold()]:
            self.ledger.unhold(data.draw(st.sampled_from(held)))
            self.after()

    @rule(data=st.data(), priority=st.sampled_from([0, 1, -1, 5]), front=st.booleans())
    def prioritize(self, data: st.DataObject, priority: int, front: bool) -> None:
        if waiting := self.waiting_():
            which = data.draw(st.sampled_from(waiting))
            if front:
                self.ledger.front(which)
            else:
                self.ledger.prioritize(which, priority)
            self.after()

    def waiting_(self) -> list[str]:
        return [a.allocation_id for a in self.ledger.queue(1000)]

    @rule(where=st.sampled_from([*NODES, *DEVICES]), state=st.sampled_from(["ready", "ready", "cordon", "drain"]))
    def cordon(self, where: str, state: str) -> None:
        if state == "ready":
            self.ledger.uncordon(where)
        else:
            self.ledger.cordon(where, drain=state == "drain")
        self.after()

    @rule(node=st.sampled_from(sorted(NODES)), more=st.sampled_from([0, 0, 4, -3]))
    def node_changes(self, node: str, more: int) -> None:
        self.node_(node, more)
        self.after()

    def node_(self, node: str, more: int) -> None:
        gpus = [DeviceInventory(f"gpu_{i}", i, f"GPU-{node}-{i}", "sim", mb + more) for i, mb in enumerate(NODES[node])]
        self.ledger.register_node(NodeInventory(node, tuple(range(CORES)), RAM + more, tuple(gpus)), LEASE_S)

    @rule(device=st.sampled_from(DEVICES), closing=st.booleans())
    def worker_goes_or_comes(self, device: str, closing: bool) -> None:
        if closing:
            self.ledger.close_worker(f"w.{device}", "one")
        else:
            self.worker_(device)
        self.after()

    def worker_(self, device: str) -> None:
        node, device_id = device.split("/")
        self.ledger.register_worker(
            f"w.{device}", "one", node, device_id, slots=self.slots, queue=f"q.{device}", lease_s=LEASE_S
        )

    @rule(tenant=st.sampled_from(TENANTS[1:]), quota=st.none() | caps)
    def quota(self, tenant: str, quota: Quota | None) -> None:
        self.ledger.set_tenant(tenant, quota)
        if quota is None:
            self.quotas.pop(tenant, None)
        else:
            self.quotas[tenant] = quota
        self.after()

    @rule(seconds=st.sampled_from([0, 1, 4, 30]))
    def tick(self, seconds: int) -> None:
        self.now += seconds * 1000
        self.tick_()

    def tick_(self) -> None:
        reply = self.ledger.tick()
        self.ledger.settle(o.allocation_id for o in reply.obituaries)
        self.after(ticked=True)

    # --- invariants

    def after(self, *, ticked: bool = False) -> None:
        assert self.ledger.verify() == []
        state, held, waiting = self.ledger.snapshot(), self.ledger.held(), self.ledger.queue(1000)
        assert broken(state, held) == []
        new = [a for a in held if self.tokens.get(a.allocation_id) != a.token]
        kept = self.ledger.reservation()
        if kept is not None:
            assert kept.allocation_id in {a.allocation_id for a in waiting}
            assert self.options.backfill == "easy"
        for a in new:
            over = self.above_cap(a.requirements.tenant, held)
            assert over is None, f"{a.allocation_id} lifts its tenant above its cap on {over}"
        if (
            kept
            and self.kept
            and kept.device
            and (kept.allocation_id, kept.device) == (self.kept.allocation_id, self.kept.device)
        ):
            holder = next(a for a in waiting if a.allocation_id == kept.allocation_id)
            self.nothing_delays(holder, kept.device, state, held, new)
        if ticked:
            # What waits for where its word is loaded has room, and is in nobody's way.
            patient = {(lane.shape, lane.tenant) for lane in self.ledger.patience()}
            for a in waiting:
                if (Shape.of(a.requirements, a.kind), a.requirements.tenant) in patient:
                    assert a.requirements.affinity
                    continue
                for device in self.rooms(a, state, held):
                    why = self.why_not(a, device, state, held, waiting, kept)
                    assert why, f"{a.allocation_id} waits, and fits {device.key}\n{self.told(held, waiting, kept)}"
        self.tokens = {a.allocation_id: a.token for a in held}
        self.kept = kept

    def above_cap(self, tenant: str, held: tuple[Allocation, ...], more: Requirements | None = None) -> str | None:
        """The first dimension in which what a tenant holds (and ``more``) is above its cap."""
        quota = self.quotas.get(tenant)
        if quota is None:
            return None
        mine = [a.requirements for a in held if a.requirements.tenant == tenant] + ([more] if more else [])
        for dimension in ("gpu_memory_mb", "cpu_cores", "ram_mb"):
            cap = getattr(quota, dimension)
            if cap is not None and sum(getattr(need, dimension) for need in mine) > cap:
                return dimension
        return "tasks" if quota.tasks is not None and len(mine) > quota.tasks else None

    def free(self, device: DeviceState, node: NodeState, held: list[Allocation]) -> Room:
        here = [a for a in held if device_key(a) == device.key]
        there = [a for a in held if a.node == node.node]
        return Room(
            device.memory_mb - sum(a.requirements.gpu_memory_mb for a in here),
            device.slots - sum(a.kind is Kind.TASK for a in here),
            len(node.cpu_cores) - sum(a.requirements.cpu_cores for a in there),
            node.ram_mb - sum(a.requirements.ram_mb for a in there),
        )

    def ends(self, a: Allocation) -> float:
        """When what holds is expected to have ended, ms."""
        since = round((a.started_at or a.granted_at or 0) * 1000)
        said = a.requirements.expected_runtime_s * 1000
        run = said or self.sketches[self.facts[a.allocation_id].name].promised(self.now - since)
        end = math.inf if run is None else since + run
        if a.kind is Kind.MANUAL and a.expires_at is not None:
            end = min(end, a.expires_at * 1000)
        return max(self.now, end)

    def shadow(
        self, holder: Allocation, device: DeviceState, node: NodeState, held: list[Allocation]
    ) -> tuple[float, Room]:
        """When the holder can start there (ms, inf: nobody knows), and what is free then, the holder not counted."""
        for at in sorted({float(self.now), *(self.ends(a) for a in held if a.node == node.node)}):
            if at == math.inf:
                break
            room = self.free(device, node, [a for a in held if self.ends(a) > at])
            if room.holds(holder.requirements, holder.kind):
                return at, room
        return math.inf, self.free(device, node, held)

    def nothing_delays(
        self,
        holder: Allocation,
        where: str,
        state: ClusterState,
        held: tuple[Allocation, ...],
        new: list[Allocation],
    ) -> None:
        """What was granted while a device was kept for the holder lets it start no later there."""
        device = next((d for d in state.devices if d.key == where), None)
        if device is None or not new:
            return
        node = next(n for n in state.nodes if n.node == device.node)
        ours = {a.allocation_id for a in new if not self.goes_before(a, holder, held, new)}
        without, _ = self.shadow(holder, device, node, [a for a in held if a.allocation_id not in ours])
        now, room = self.shadow(holder, device, node, list(held))
        if without < math.inf:
            late = f"{sorted(ours)} delay {holder.allocation_id} by {now - without} ms"
            assert now <= without + 0.001, f"{late}\n{self.told(held, (holder,), self.kept)}"
            return
        need = holder.requirements
        for a in held:
            if a.allocation_id in ours and a.node == node.node:
                assert not a.requirements.cpu_cores or room.cores >= need.cpu_cores
                assert not a.requirements.ram_mb or room.ram >= need.ram_mb
                if device_key(a) == device.key:
                    assert not a.requirements.gpu_memory_mb or room.gpu >= need.gpu_memory_mb
                    assert Kind.MANUAL in (a.kind, holder.kind) or room.slots >= 1

    def goes_before(
        self, a: Allocation, holder: Allocation, held: tuple[Allocation, ...], new: list[Allocation]
    ) -> bool:
        """It passes nobody, or may: it is before the holder in their tenant's line, or its tenant's first."""
        if a.requirements.tenant == holder.requirements.tenant:
            return self.score(a) < self.score(holder)
        fresh = {b.allocation_id for b in new}
        return all(b.allocation_id in fresh for b in held if b.requirements.tenant == a.requirements.tenant)

    def score(self, a: Allocation) -> float:
        return float(self.client.hget(keys.key(self.pool, "alloc", a.allocation_id), "score") or 0)

    def rooms(self, a: Allocation, state: ClusterState, held: tuple[Allocation, ...]) -> list[DeviceState]:
        """The devices that it fits now."""
        found = []
        for node in state.nodes:
            for device in node.devices:
                served = device.worker and not device.closing
                if (
                    device.state == "ready"
                    and device.is_gpu == (a.requirements.gpu_memory_mb > 0)
                    and (served or a.kind is Kind.MANUAL)
                    and self.free(device, node, list(held)).holds(a.requirements, a.kind)
                ):
                    found.append(device)
        return found

    def why_not(
        self,
        a: Allocation,
        device: DeviceState,
        state: ClusterState,
        held: tuple[Allocation, ...],
        waiting: tuple[Allocation, ...],
        kept: Reservation | None,
    ) -> str:
        """Why it waits beside a device that it fits."""
        if self.above_cap(a.requirements.tenant, held, a.requirements):
            return "cap"

        def lane(b: Allocation) -> tuple[Any, ...]:
            req = b.requirements
            return Shape.of(req, b.kind), req.tenant, self.facts[b.allocation_id].pace

        for b in waiting:
            if b.allocation_id == a.allocation_id:
                break
            if lane(b) == lane(a):
                return "behind others of its lane"
        if self.options.backfill == "none":
            firsts: dict[str, Allocation] = {}
            for b in waiting:
                firsts.setdefault(b.requirements.tenant, b)
            if firsts[a.requirements.tenant].allocation_id != a.allocation_id:
                return "behind others of its tenant"
            for tenant, b in firsts.items():
                if tenant != a.requirements.tenant and not self.above_cap(tenant, held, b.requirements):
                    return "behind others"
        if kept is None or kept.device is None or kept.device.split("/")[0] != device.node:
            return ""
        holder = next(b for b in waiting if b.allocation_id == kept.allocation_id)
        return "kept" if self.kept_from(a, device, holder, kept, state, held) else ""

    def kept_from(
        self,
        a: Allocation,
        device: DeviceState,
        holder: Allocation,
        kept: Reservation,
        state: ClusterState,
        held: tuple[Allocation, ...],
    ) -> bool:
        """Whether it would delay the holder, or could."""
        if a.allocation_id == holder.allocation_id:
            return False
        mine, its = a.requirements, holder.requirements
        if mine.tenant == its.tenant and self.score(a) < self.score(holder):
            return False
        counts = Counter(b.requirements.tenant for b in held)
        overdue = kept.passed >= self.options.max_bypass or self.now / 1000 - kept.since >= self.options.max_bypass_s
        if mine.tenant != its.tenant and not counts[mine.tenant] and counts[its.tenant] and not overdue:
            return False
        node = next(n for n in state.nodes if n.node == device.node)
        seat = next(d for d in node.devices if d.key == kept.device)
        at, then = self.shadow(holder, seat, node, list(held))
        run = mine.expected_runtime_s * 1000 or self.sketches[self.facts[a.allocation_id].name].promised()
        if run is not None and at < math.inf and self.now + run <= at and not self.late(kept):
            return False
        left = Room(
            max(0, then.gpu - its.gpu_memory_mb),
            max(0, then.slots - (holder.kind is Kind.TASK)),
            max(0, then.cores - its.cpu_cores),
            max(0, then.ram - its.ram_mb),
        )
        if device.key != seat.key:
            left = Room(mine.gpu_memory_mb, 1, left.cores, left.ram)
        return not left.holds(mine, a.kind)

    def late(self, kept: Reservation) -> bool:
        """It is so far behind the time that was said first that run times let nobody pass any more."""
        due = float(self.client.hget(keys.key(self.pool, "reserved"), "due") or math.inf)
        return self.now - due >= max(self.options.max_bypass_s * 1000, due - kept.since * 1000)

    def told(self, held: tuple[Allocation, ...], waiting: tuple[Allocation, ...], kept: Reservation | None) -> str:
        """All that matters, for whoever reads of a failure."""
        lines = [f"{self.options.backfill}, now {self.now}, quotas {self.quotas}", f"{kept}", "held:"]
        lines += [f"  {a.allocation_id} {device_key(a)} until {self.ends(a)} {a.requirements}" for a in held]
        lines += ["waiting:", *(f"  {a.allocation_id} {self.facts[a.allocation_id]} {a.requirements}" for a in waiting)]
        return "\n".join(lines)

    def never(self, a: Allocation) -> bool:
        """No node as registered at first could ever hold it, or its tenant may not."""
        need = a.requirements
        sizes = [Room(max(gpus), 1, CORES, RAM) for gpus in NODES.values()]
        return bool(self.above_cap(need.tenant, (), need)) or not any(size.holds(need, a.kind) for size in sizes)

    # --- the end

    def teardown(self) -> None:
        """Where everything is open and all that runs ends, everybody gets its turn, but for what can never have one."""
        if not hasattr(self, "ledger"):
            return
        for node in NODES:
            self.node_(node, 0)
            self.after()
            self.ledger.uncordon(node)
            self.after()
        for device in DEVICES:
            self.worker_(device)
            self.after()
        for a in self.ledger.on_hold():
            self.ledger.unhold(a.allocation_id)
            self.after()
        if self.options.backfill == "none":  # these hold all others up
            for a in (*self.ledger.queue(1000), *self.ledger.delayed()):
                if self.never(a):
                    self.ledger.cancel(a.allocation_id)
        self.now += 5000
        self.tick_()
        for _ in range(len(self.facts) + 10):
            if not self.tokens and not self.ledger.patience():
                break
            self.now += 7000
            self.start_()
            self.after()
            for name in sorted(self.tokens):
                if name in self.tokens:
                    self.release_(name, "success")
                    self.after()
            self.tick_()
        for a in self.ledger.queue(1000):
            assert self.never(a), f"{a.allocation_id} never had its turn"
            self.ledger.cancel(a.allocation_id)
        for tenant in self.quotas:
            self.ledger.set_tenant(tenant, None)
        self.now += 1000
        self.ledger.settle(o.allocation_id for o in self.ledger.tick().obituaries)
        self.ledger.tick()
        assert_empty(self.ledger)
        self.client.unlink(*self.client.scan_iter(match=f"{keys.prefix(self.pool)}*", count=10_000))


@pytest.fixture
def machine(redis_server: RedisServer) -> Iterator[type[FairnessMachine]]:
    with redis_server.client() as client:
        yield type("Machine", (FairnessMachine,), {"client": client})


@pytest.mark.timeout(3600)
def test_nobody_is_passed_over(machine: type[FairnessMachine]) -> None:
    run_machine(machine, EXAMPLES, STEPS)
