"""Random operations in random order on the real ledger, each compared with what brute force says should happen.

After every step: the ledger's own ``verify`` finds nothing; capacity adds up from ``snapshot`` and ``held``; nobody
waits who fits, but for where a word of affinity is loaded, and for that not for long; and every allocation is in the
state, on the device and in the place in line that :mod:`tests.property.reference` predicts. ``LEDGER_EXAMPLES`` and
``LEDGER_STEPS`` set how long to look.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from celery_allocator.errors import (
    ActionRefused,
    AllocationNotFound,
    DeviceBusyError,
    StaleTokenError,
    UnknownTargetError,
    UnsatisfiableError,
)
from celery_allocator.ledger import Grant, Ledger, Note, Options
from celery_allocator.model import DeviceInventory, Kind, NodeInventory, RamUse, Requirements, Strategy, Withheld
from tests.property.reference import DEADLINE_MS, DECAY, MAX_LOSSES, Claim, Reference
from tests.property.running import run_machine
from tests.property.warmth import Patience, Warmth
from tests.support.ledger_checks import assert_empty, broken, idle_beside_waiting
from tests.support.redis_server import RedisServer

EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "160"))
STEPS = int(os.environ.get("LEDGER_STEPS", "50"))

_numbers = itertools.count()

NODES = ("n1", "n2", "n3")
TARGETS = ("n1", "n2", "n3", "n1/gpu_0", "n1/gpu_1", "n2/gpu_0", "n3/cpu", "n1/cpu", "nowhere")

requirements = st.builds(
    Requirements,
    gpu_memory_mb=st.sampled_from([4, 4, 3, 8, 1, 0, 0, 5, 10, 16]),
    cpu_cores=st.sampled_from([1, 1, 2, 3, 4, 9]),
    ram_mb=st.sampled_from([0, 0, 10, 30, 60]),
    priority=st.sampled_from([0, 0, 0, 1, 5, -1, 1000, -1000]),
    expected_runtime_s=st.sampled_from([0, 0, 0, 1, 2, 5]),
    affinity=st.sampled_from(["red", "red", "", "green", "blue"]),
)
#: What few ask for besides amounts.
MORE: tuple[dict[str, Any], ...] = (
    *({},) * 8,
    {"gpu": 0.3},
    {"gpu": 0.5},
    {"exclusive": True},
    {"gpu_model": "Even"},
    {"node": "n1"},
    {"labels": {"zone": "a"}},
    {"labels": {"zone": "c"}},
    {"anti_affinity": "web"},
    {"gpu": 0.25, "gpu_model": "odd", "anti_affinity": "web"},
)
USUAL = (
    {"cores": {0, 1, 2, 3, 4, 5, 6, 7}, "ram": 100, "gpus": [(0, 8, (0, 1, 2)), (1, 8, (4, 5, 8))]},
    {"cores": {0, 1, 2, 4, 5, 7, 9}, "ram": 60, "gpus": [(1, 4, ()), (0, 16, (0, 1, 2))]},
    {"cores": {0, 1, 2, 3, 4, 5}, "ram": 100, "gpus": [(2, 10, (4, 5, 8))]},
    {"cores": {0, 1, 2, 3, 4, 5, 6, 7}, "ram": 100, "gpus": [(0, 16, ()), (1, 8, (0, 1, 2)), (2, 10, ())]},
)
unusual = st.fixed_dictionaries(
    {
        "cores": st.sets(st.integers(0, 9)),
        "ram": st.sampled_from([100, 60, 30, 0]),
        "gpus": st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([4, 8, 10, 16]), st.sampled_from([(), (0, 1, 2), (4, 5, 8)])),
            max_size=3,
            unique_by=lambda gpu: gpu[0],
        ),
    }
)


def inventory(node: str, size: dict[str, Any]) -> NodeInventory:
    gpus = tuple(
        DeviceInventory(f"gpu_{i}", i, f"GPU-{node}-{i}", f"sim {'odd' if i % 2 else 'even'}", mb, near)
        for i, mb, near in size["gpus"]
    )
    labels = {"zone": "b" if node == "n2" else "a"}
    return NodeInventory(node, tuple(sorted(size["cores"])), size["ram"], gpus, labels=labels)


class LedgerMachine(RuleBasedStateMachine):
    """One pool, from its first node to its end."""

    client: redis.Redis

    @initialize(
        n1=st.sampled_from(USUAL),
        n2=st.sampled_from(USUAL),
        slots=st.sampled_from([4, 2, 1]),
        affinity_s=st.sampled_from([3600, 10]),
        affinity_wait_s=st.sampled_from([3, 3, 30, 0]),
        affinity_keeps=st.sampled_from([1, 1, 2]),
        words=st.booleans(),
    )
    def begin(self, n1: dict[str, Any], n2: dict[str, Any], slots: int, words: bool, **affinity: int) -> None:
        self.words = words  # whether tasks say what they need loaded: in most pools none does
        warmth = Warmth(affinity["affinity_s"] * 1000, affinity["affinity_keeps"])
        patience = Patience(affinity["affinity_wait_s"] * 1000)
        self.ref = Reference(now=1_700_000_000_000, warmth=warmth, patience=patience)
        # Without reservations the reference can foretell every grant; with them: test_fairness_machine.
        options = Options(
            start_deadline_s=DEADLINE_MS / 1000,
            max_losses=MAX_LOSSES,
            events_maxlen=1000,
            backfill="greedy",
            runtime_decay=DECAY,
            **affinity,
        )
        clock = lambda: self.ref.now / 1000  # noqa: E731
        self.ledger = Ledger(self.client, f"machine-{os.getpid()}-{next(_numbers)}", clock=clock, options=options)
        self.last_token = 0
        self.names = itertools.count()
        self.silent: set[str] = set()  # workers whose heartbeat has stopped
        self.undoable: dict[int, Claim] = {}  # entries of the journal: what they ended, as it was
        #: For how long (ms) what waits has had room, and how long at most nobody ticked in that time.
        self.beside_room: dict[str, tuple[int, int]] = {}
        self.ticked = self.ref.now
        for node, size in (("n1", n1), ("n2", n2)):
            self.register_node_(node, size, 60_000)
        for device in list(self.ref.devices):
            self.register_worker_(f"w.{device}", "first", device, slots, 10_000)

    # --- rules

    @rule(
        req=requirements,
        strategy=st.sampled_from(Strategy),
        kind=st.sampled_from([Kind.TASK, Kind.TASK, Kind.MANUAL]),
        eta_s=st.sampled_from([None, None, -1, 2, 20]),
        expires_s=st.sampled_from([None, None, 0, 5, 30]),
        ttl_s=st.sampled_from([5, 60]),
        on_never=st.sampled_from(["raise", "wait"]),
        task=st.sampled_from(["a", "b", "own"]),
        several=st.sampled_from([1, 1, 2, 3]),
        more=st.sampled_from(MORE),
    )
    def submit(self, **how: Any) -> None:
        self.submit_(**how)

    @rule(
        req=requirements,
        strategy=st.sampled_from(Strategy),
        count=st.integers(2, 6),
        ttl_s=st.just(60),
        more=st.sampled_from(MORE),
    )
    def submit_several(self, count: int, **how: Any) -> None:
        for _ in range(count):
            self.submit_(**how)

    @rule(reqs=st.lists(requirements, min_size=2, max_size=6), strategy=st.sampled_from(Strategy))
    def submit_a_mixture(self, reqs: list[Requirements], strategy: Strategy) -> None:
        for req in reqs:
            self.submit_(req, strategy)

    @precondition(lambda self: self.words)
    @rule(
        words=st.lists(st.sampled_from(["red", "red", "red", "green", "blue"]), min_size=2, max_size=5),
        needs=st.sampled_from(({"gpu": 0.6}, {"gpu": 0.3}, {"exclusive": True}, {"gpu_memory_mb": 4}, {})),
        run=st.sampled_from([0, 1, 2, 5]),
        strategy=st.sampled_from(Strategy),
        at_once=st.integers(0, 3),
        seconds=st.sampled_from([0, 1, 2]),
        stop=st.booleans(),
    )
    def one_loads_what_others_want(
        self,
        words: list[str],
        needs: dict[str, Any],
        run: int,
        strategy: Strategy,
        at_once: int,
        seconds: int,
        stop: bool,
    ) -> None:
        """Each in turn is loaded somewhere by one that ends at once, but for the last ones: these go on, or wait."""
        for number, word in enumerate(words):
            asked = Requirements(**needs, expected_runtime_s=run, affinity=word)
            claim = self.submit_(asked, strategy, on_never="wait")
            if claim.state != "granted":
                continue
            self.start_(claim, late=True)
            self.later(seconds * 1000)
            if number < len(words) - at_once:
                self.release_(claim, "success", claim.token, publishes=True)
        if stop:  # and goes on at once: so that a pass looks at all that wait
            self.after(self.ref.pause(stop=True), self.ledger.pause(stop=True).grants)
            self.after(self.ref.pause(stop=False), self.ledger.pause(stop=False).grants)

    def submit_(
        self,
        req: Requirements,
        strategy: Strategy,
        kind: Kind = Kind.TASK,
        eta_s: int | None = None,
        expires_s: int | None = None,
        ttl_s: int = 60,
        on_never: str = "raise",
        task: str = "own",
        several: int = 1,
        more: dict[str, Any] = {},  # noqa: B006  # never changed
    ) -> Claim:
        if not self.words:
            req = replace(req, affinity="")
        if "gpu_model" not in more or req.on_gpu:
            req = replace(req, **more)
        if req.on_gpu and several > 1:
            req = replace(req, gpu_count=several)
        if req.share and strategy is Strategy.FGD:
            strategy = Strategy.SPREAD  # what a share that waits would come to is fgd's own guess
        name = f"c{next(self.names):03}"
        eta = None if eta_s is None else self.ref.now + eta_s * 1000
        exp = None if expires_s is None else self.ref.now + expires_s * 1000
        task_id = name if task == "own" else task
        claim = Claim(name, task_id, req, strategy, kind, 0, ttl_s * 1000, eta, exp)
        options: dict[str, Any] = {
            "strategy": strategy,
            "kind": kind,
            "message": f"message of {name}".encode(),
            "eta_at": None if eta is None else eta / 1000,
            "expires_at": None if exp is None else exp / 1000,
            "ttl_s": ttl_s,
            "on_never": on_never,
        }
        never = self.ref.never(req)
        if on_never == "raise" and never is not None:
            with pytest.raises(UnsatisfiableError) as caught:
                self.ledger.submit(name, task_id, "work", req, **options)
            assert (caught.value.dimension, caught.value.largest) == never
            self.after([])
            return claim
        expected = self.ref.submit(claim)
        reply = self.ledger.submit(name, task_id, "work", req, **options)
        self.after(expected)
        assert reply.allocation.state.value == claim.state
        assert reply.allocation.token == claim.token
        assert frozenset(reply.allocation.cpu_cores) == (claim.cores or frozenset())
        if claim.state == "waiting":
            assert reply.allocation.queue_position == self.ref.line().index(claim) + 1
        if claim.device is not None:
            device = self.ref.devices[claim.device]
            node = self.ref.nodes[device.node]
            left = (self.ref.memory_free(device), self.ref.cores_free(node), self.ref.ram_free(node))
            assert (reply.available.gpu_memory_mb, reply.available.cpu_cores, reply.available.ram_mb) == left
        again = self.ledger.submit(name, task_id, "work", req, **options)
        assert again.known
        assert again.allocation.state.value == claim.state
        self.after([])
        return claim

    @precondition(lambda self: self.ref.in_state("granted"))
    @rule(data=st.data(), late=st.booleans(), trouble=st.sampled_from(["", "", "token", "worker"]))
    def start(self, data: st.DataObject, late: bool, trouble: str) -> None:
        claim = data.draw(st.sampled_from(self.ref.in_state("granted")))
        device = self.ref.devices[claim.device]
        nonce = f"nonce {claim.token}"
        token = claim.token - 1 if trouble == "token" else claim.token
        incarnation = "somebody" if trouble == "worker" else device.incarnation
        if trouble:
            with pytest.raises(StaleTokenError):
                self.ledger.start(claim.id, token, device.worker, incarnation, nonce, late)
            self.after([])
        else:
            self.start_(claim, late)

    def start_(self, claim: Claim, late: bool) -> None:
        device = self.ref.devices[claim.device or ""]
        nonce = f"nonce {claim.token}"
        claim.state, claim.late, claim.nonce, claim.started = "running", late, nonce, self.ref.now
        for _ in range(2):  # the reply was lost: the same delivery asks again
            reply = self.ledger.start(claim.id, claim.token, device.worker, device.incarnation, nonce, late)
            assert (reply.token, reply.worker) == (claim.token, device.worker)
        with pytest.raises(StaleTokenError):
            self.ledger.start(claim.id, claim.token, device.worker, device.incarnation, "another delivery", late)
        self.after([])

    @precondition(lambda self: self.ref.in_state("granted"))
    @rule(late=st.booleans())
    def start_all(self, late: bool) -> None:
        for claim in self.ref.in_state("granted"):
            self.start_(claim, late)

    @precondition(lambda self: any(self.ref.held()))
    @rule(count=st.integers(1, 3))
    def oldest_end(self, count: int) -> None:
        for claim in sorted(self.ref.held(), key=lambda c: c.token)[:count]:
            self.release_(claim, "success", claim.token, publishes=True)

    @precondition(lambda self: any(self.ref.held()))
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["success", "success", "failure", "requeue"]),
        fenced=st.booleans(),
        publishes=st.booleans(),
    )
    def release(self, data: st.DataObject, outcome: str, fenced: bool, publishes: bool) -> None:
        claim = data.draw(st.sampled_from(list(self.ref.held())))
        self.release_(claim, outcome, claim.token if fenced else None, publishes)

    def release_(self, claim: Claim, outcome: str, token: int | None, publishes: bool) -> None:
        expected = self.ref.release(claim, outcome)
        reply = self.ledger.release(claim.id, token, outcome, publishes=publishes)
        assert reply.done, reply
        self.after(expected, reply.grants, publishes)

    @precondition(lambda self: self.ref.in_state("running"))
    @rule(data=st.data(), growth=st.sampled_from([1.1, 1.5, 3.0]), most=st.integers(0, 3), publishes=st.booleans())
    def out_of_gpu_memory(self, data: st.DataObject, growth: float, most: int, publishes: bool) -> None:
        claim = data.draw(st.sampled_from(self.ref.in_state("running")))
        token = claim.token
        reason, expected = self.ref.grow(claim, growth, most)
        reply = self.ledger.grow(claim.id, token, growth, most, publishes=publishes)
        assert reply.reason == reason
        if not reason:
            assert (reply.to_mb, reply.times) == (claim.req.gpu_memory_mb, claim.grown)
            assert self.ledger.grow(claim.id, token, growth, most).reason == "stale"
        self.after(expected, reply.grants, publishes)

    @precondition(lambda self: self.ref.spent)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "requeue"]))
    def use_a_spent_token(self, data: st.DataObject, outcome: str) -> None:
        """Whoever holds one is too late, above all where the claim lives on under another."""
        alive = [spent for spent in self.ref.spent if spent[0] in self.ref.claims]
        name, token = data.draw(st.sampled_from(alive or self.ref.spent))
        assert not self.ledger.release(name, token, outcome).done
        device = self.ref.devices.get(getattr(self.ref.claims.get(name), "device", None) or "")
        served_by = (device.worker, device.incarnation) if device else ("w", "first")
        with pytest.raises(StaleTokenError):
            self.ledger.start(name, token, *served_by, f"nonce {token}", True)
        if name in self.ref.claims and self.ref.claims[name].kind is Kind.MANUAL:
            with pytest.raises(StaleTokenError):
                self.ledger.renew(name, 5, token)
        self.after([])

    @precondition(lambda self: self.ref.claims or self.ref.buried)
    @rule(data=st.data(), publishes=st.booleans())
    def cancel(self, data: st.DataObject, publishes: bool) -> None:
        name = data.draw(st.sampled_from([*self.ref.claims, *self.ref.buried, *sorted(self.ref.ended)[:1]]))
        claim = self.ref.claims.get(name)
        if claim is None or (claim.state == "running" and claim.kind is Kind.TASK):
            reply = self.ledger.cancel(name, publishes=publishes)
            assert (reply.done, reply.grants) == (False, ())
            assert reply.state == ("gone" if claim is None else "running")
            self.after([])
            return
        state = claim.state
        expected = self.ref.cancel(claim)
        reply = self.ledger.cancel(name, publishes=publishes)
        assert (reply.done, reply.state) == (True, state)
        assert (reply.obituary is not None) == (claim.kind is Kind.TASK)
        self.after(expected, reply.grants, publishes)

    @precondition(lambda self: self.ref.claims)
    @rule(data=st.data(), ttl_s=st.sampled_from([1, 90]))
    def renew(self, data: st.DataObject, ttl_s: int) -> None:
        by_hand = [c for c in self.ref.claims.values() if c.kind is Kind.MANUAL]
        claim = data.draw(st.sampled_from(by_hand or list(self.ref.claims.values())))
        if claim.kind is Kind.TASK:
            with pytest.raises(AllocationNotFound):
                self.ledger.renew(claim.id, ttl_s)
            self.after([])
            return
        claim.ttl = ttl_s * 1000
        if claim.state != "delayed":
            claim.ends = self.ref.now + claim.ttl
        if claim.device is not None:
            node = self.ref.nodes[claim.device.split("/")[0]]
            if node.lease is not None:
                node.lease = max(node.lease, self.ref.now + claim.ttl)
        self.ledger.renew(claim.id, ttl_s)
        self.after([])

    @precondition(lambda self: self.ref.workers)
    @rule(data=st.data())
    def a_worker_falls_silent(self, data: st.DataObject) -> None:
        self.silent.add(data.draw(st.sampled_from(sorted(self.ref.workers))))

    @rule(seconds=st.sampled_from([0.125, 1, 3, 5, 12, 40]), ticks=st.booleans())
    def time_passes(self, seconds: float, ticks: bool) -> None:
        """The workers that live renew their leases; silent ones run into theirs."""
        self.later(int(seconds * 1000))
        for name in sorted(self.ref.workers.keys() - self.silent):
            worker = self.ref.workers[name]
            worker.lease = self.ref.now + 10_000
            node = self.ref.nodes[self.ref.devices[worker.device].node]
            node.lease = max(node.lease or 0, worker.lease)
            assert self.ledger.heartbeat(name, worker.incarnation, 10)
        assert not self.ledger.heartbeat("w.nobody", "first", 10)
        self.after([])
        if ticks:
            self.tick_(publishes=True)

    def later(self, ms: int) -> None:
        ref, seen = self.ref, self.beside_room
        self.beside_room = {}
        for claim in ref.in_state("waiting") if self.words else ():
            beside, longest = seen.get(claim.id, (0, 0))
            has_room = claim.affine and any(ref.fits(claim, device) for device in ref.devices.values())
            self.beside_room[claim.id] = beside + (ms if has_room else 0), max(longest, ref.now + ms - self.ticked)
        ref.now += ms

    @rule(publishes=st.booleans())
    def tick(self, publishes: bool) -> None:
        self.tick_(publishes)

    def tick_(self, publishes: bool) -> None:
        granted, again, lost = self.ref.tick(publishes)
        reply = self.ledger.tick(publishes=publishes)
        assert set(reply.lost_workers) == lost
        tasks = [c for c in granted if c.kind is Kind.TASK]
        self.after(granted, reply.grants[: len(tasks)], publishes)
        assert {(g.allocation_id, g.token) for g in reply.grants[len(tasks) :]} == {(c.id, c.token) for c in again}
        self.ticked = self.ref.now
        for claim in self.ref.line():
            beside, longest = self.beside_room.get(claim.id, (0, 0))
            assert beside <= self.ref.patience.wait + longest, f"{claim} has waited beside room for {beside} ms"
        if publishes:
            assert {(o.allocation_id, o.outcome) for o in reply.obituaries} == set(self.ref.buried.items())
            assert all(o.message == f"message of {o.allocation_id}".encode() for o in reply.obituaries)

    @precondition(lambda self: self.words)
    @rule()
    def repair(self) -> None:
        """Where nothing is damaged nothing changes, but that those wait anew who wait for where a word is loaded."""
        self.beside_room.clear()
        expected = self.ref.repair()
        reply = self.ledger.repair()
        assert reply.left == ()
        self.after(expected, reply.grants)

    @precondition(lambda self: self.ref.buried)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.ref.buried)))
        assert self.ledger.settle([name, "nobody"]) == 1
        assert self.ledger.settle([name]) == 0
        del self.ref.buried[name]
        self.ref.ended.add(name)
        self.after([])

    @rule(node=st.sampled_from(NODES), size=st.sampled_from(USUAL) | unusual, lease_s=st.sampled_from([5, 60]))
    def register_node(self, node: str, size: dict[str, Any], lease_s: int) -> None:
        self.register_node_(node, size, lease_s * 1000)

    def register_node_(self, node: str, size: dict[str, Any], lease: int) -> None:
        expected = self.ref.register_node(inventory(node, size), lease)
        self.after(expected, self.ledger.register_node(inventory(node, size), lease / 1000))

    @rule(
        data=st.data(),
        incarnation=st.sampled_from(["first", "second", "third"]),
        own_name=st.booleans(),
        slots=st.integers(1, 4),
        lease_s=st.sampled_from([3, 10]),
    )
    def register_worker(self, data: st.DataObject, incarnation: str, own_name: bool, slots: int, lease_s: int) -> None:
        device = data.draw(st.sampled_from([*self.ref.devices, "nowhere/gpu_0"]))
        name = f"w.{device}" if own_name else data.draw(st.sampled_from(["w.spare", *sorted(self.ref.workers)]))
        self.register_worker_(name, incarnation, device, slots, lease_s * 1000)

    def register_worker_(self, name: str, incarnation: str, key: str, slots: int, lease: int) -> None:
        node, device_id = key.split("/")
        call: dict[str, Any] = {
            "slots": slots,
            "queue": f"queue of {key}",
            "lease_s": lease / 1000,
            "pid": 7,
            "born": "boot:1",
        }
        device = self.ref.devices.get(key)
        if device is None:
            with pytest.raises(UnknownTargetError):
                self.ledger.register_worker(name, incarnation, node, device_id, **call)
            self.after([])
            return
        in_the_way = [
            (device.worker, device.incarnation),
            (name, getattr(self.ref.workers.get(name), "incarnation", "")),
        ]
        if any(
            inc not in ("", incarnation) and other in self.ref.workers and self.ref.workers[other].lease > self.ref.now
            for other, inc in in_the_way
        ):
            with pytest.raises(DeviceBusyError):
                self.ledger.register_worker(name, incarnation, node, device_id, **call)
            self.after([])
            return
        self.silent.discard(name)
        expected = self.ref.register_worker(name, incarnation, key, slots, lease)
        self.after(expected, self.ledger.register_worker(name, incarnation, node, device_id, **call))

    @rule(
        data=st.data(),
        gpu=st.sampled_from([None, 0, 2, 5, 9, 40]),
        ram=st.none() | st.tuples(st.sampled_from([0, 15, 50, 200]), st.sampled_from([0, 10])),
        by=st.sampled_from(["its worker"] * 4 + ["its next worker", "somebody"]),
        registering=st.booleans(),
    )
    def withhold(
        self, data: st.DataObject, gpu: int | None, ram: tuple[int, int] | None, by: str, registering: bool
    ) -> None:
        device = data.draw(st.sampled_from(list(self.ref.devices.values())))
        name, incarnation = device.worker or f"w.{device.key}", device.incarnation or "third"
        if by != "its worker":
            incarnation = "third"
        if by == "somebody":
            name = "w.somebody"
        expected = self.ref.withhold(name, incarnation, device.key, registering, gpu, ram)
        seen = None if gpu is None else Withheld(gpu), None if ram is None else RamUse(*ram)
        reply = self.ledger.withhold(name, incarnation, device.key, *seen, registering=registering)
        assert (reply is None) == (expected is None)
        self.after(expected or [], reply.grants if reply else None)

    @precondition(lambda self: self.ref.workers)
    @rule(data=st.data(), closing=st.booleans(), right=st.sampled_from([True, True, True, False]))
    def worker_leaves(self, data: st.DataObject, closing: bool, right: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.ref.workers)))
        worker = self.ref.workers[name]
        leave = self.ledger.close_worker if closing else self.ledger.unregister_worker
        if not right:
            assert leave(name, "another incarnation") == ()
            self.after([])
            return
        if closing:
            if self.ref.devices[worker.device].worker == name:
                self.ref.devices[worker.device].open = False
                self.ref.withdraw_unstarted(worker.device, served=True)
        else:
            self.ref.drop_worker(name)
        self.after(self.ref.sweep(), leave(name, worker.incarnation))

    @rule(where=st.sampled_from(TARGETS), state=st.sampled_from(["ready", "ready", "cordoned", "draining"]))
    def cordon(self, where: str, state: str) -> None:
        if where not in self.ref.nodes and where not in self.ref.devices:
            with pytest.raises(UnknownTargetError):
                self.ledger.cordon(where)
            self.after([])
            return
        expected = self.ref.set_state(where, state)
        if state == "ready":
            self.after(expected, self.ledger.uncordon(where))
            return
        grants, held = self.ledger.cordon(where, drain=state == "draining")
        devices = [d for d in self.ref.devices.values() if where in (d.key, d.node)]
        assert set(held) == {c.id for d in devices for c in self.ref.on(d.key) if c.token >= 0}
        self.after(expected, grants)

    # --- what operators do

    @precondition(lambda self: self.ref.claims)
    @rule(data=st.data(), publishes=st.booleans())
    def hold(self, data: st.DataObject, publishes: bool) -> None:
        claim = data.draw(st.sampled_from(self.ref.in_state("waiting") or list(self.ref.claims.values())))
        if claim.state not in ("waiting", "delayed"):
            with pytest.raises(ActionRefused, match=f"{claim.id} is {claim.state.replace('_', ' ')}"):
                self.ledger.hold(claim.id)
            self.after([])
            return
        state = claim.state
        self.ref.hold(claim)
        reply = self.ledger.hold(claim.id, publishes=publishes)
        assert reply.was == state
        self.after([], reply.grants)

    @precondition(lambda self: self.ref.claims)
    @rule(data=st.data(), publishes=st.booleans())
    def unhold(self, data: st.DataObject, publishes: bool) -> None:
        claim = data.draw(st.sampled_from(self.ref.in_state("on_hold") or list(self.ref.claims.values())))
        if claim.state != "on_hold":
            with pytest.raises(ActionRefused, match="is not on hold"):
                self.ledger.unhold(claim.id)
            self.after([])
            return
        expected = self.ref.unhold(claim)
        self.after(expected, self.ledger.unhold(claim.id, publishes=publishes).grants, publishes)

    @precondition(lambda self: self.ref.claims)
    @rule(data=st.data(), priority=st.sampled_from([0, 1, -1, 7, 1000, -1000]))
    def prioritize(self, data: st.DataObject, priority: int) -> None:
        claim = data.draw(st.sampled_from(list(self.ref.claims.values())))
        if claim.device is not None:
            with pytest.raises(ActionRefused, match="has no effect any more"):
                self.ledger.prioritize(claim.id, priority)
        else:
            assert self.ledger.prioritize(claim.id, priority).was == str(claim.req.priority)
            self.ref.prioritize(claim, priority)
        self.after([])

    @precondition(lambda self: self.ref.claims)
    @rule(data=st.data())
    def front(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(list(self.ref.claims.values())))
        if claim.device is not None:
            with pytest.raises(ActionRefused, match="is not in line any more"):
                self.ledger.front(claim.id)
        else:
            self.ledger.front(claim.id)
            self.ref.to_front(claim)
        self.after([])

    @rule(stop=st.sampled_from([True, False, False]), publishes=st.booleans())
    def pause(self, stop: bool, publishes: bool) -> None:
        expected = self.ref.pause(stop)
        self.after(expected, self.ledger.pause(stop=stop, publishes=publishes).grants, publishes)

    @rule(
        where=st.sampled_from(TARGETS[:-1]),
        states=st.lists(st.sampled_from(["ready", "ready", "cordoned", "draining"]), min_size=5, max_size=5),
        named=st.lists(st.booleans(), min_size=4, max_size=4),
    )
    def restore_states(self, where: str, states: list[str], named: list[bool]) -> None:
        """As an undo does, also for devices that came since."""
        if where not in self.ref.nodes and where not in self.ref.devices:
            return
        devices = sorted(d.key for d in self.ref.devices.values() if where == d.node)
        wanted = {key: state for key, state, name in zip(devices, states[1:], named, strict=False) if name}
        wanted[where] = states[0]
        expected = self.ref.set_state(where, wanted)
        self.after(expected, self.ledger.set_state(where, wanted).grants)

    @precondition(lambda self: any(c.state != "running" or c.kind is Kind.MANUAL for c in self.ref.claims.values()))
    @rule(data=st.data(), publishes=st.booleans())
    def end_for_now(self, data: st.DataObject, publishes: bool) -> None:
        """An operator cancels or releases, and the journal keeps what it was."""
        claims = [c for c in self.ref.claims.values() if c.state != "running" or c.kind is Kind.MANUAL]
        self.end_for_now_(data.draw(st.sampled_from(claims)), publishes)

    @precondition(lambda self: any(c.state == "granted" or c.kind is Kind.MANUAL for c in self.ref.held()))
    @rule(
        data=st.data(),
        between=st.sampled_from(["", "draining", "cordoned", "submit", "submit", "size", "pause", "leave"]),
        kind=st.sampled_from(Kind),
        req=requirements,
        size=st.sampled_from(USUAL) | unusual,
        publishes=st.booleans(),
    )
    def a_place_is_given_up_and_asked_back(
        self, data: st.DataObject, between: str, kind: Kind, req: Requirements, size: dict[str, Any], publishes: bool
    ) -> None:
        claims = [c for c in self.ref.held() if c.state == "granted" or c.kind is Kind.MANUAL]
        claim = data.draw(st.sampled_from(claims))
        device = self.ref.devices[claim.device or ""]
        self.end_for_now_(claim, publishes)
        if between in ("draining", "cordoned"):
            expected = self.ref.set_state(device.key, between)
            self.after(expected, self.ledger.set_state(device.key, between).grants)
        elif between == "submit":
            self.submit_(replace(claim.req, ram_mb=req.ram_mb), Strategy.BEST_FIT, kind, on_never="wait")
        elif between == "size":
            self.register_node_(device.node, size, 60_000)
        elif between == "pause":
            self.after(self.ref.pause(stop=True), self.ledger.pause(stop=True).grants)
        elif between == "leave" and device.worker:
            worker = self.ref.workers[device.worker]
            self.ref.devices[worker.device].open = False
            self.ref.withdraw_unstarted(worker.device, served=True)
            expected = self.ref.sweep()
            self.after(expected, self.ledger.close_worker(device.worker, worker.incarnation))
        self.bring_back_(max(self.undoable), publishes)

    def end_for_now_(self, claim: Claim, publishes: bool) -> None:
        was = copy(claim)
        note = Note("end", {}, "ada")
        if claim.state == "running":
            expected = self.ref.release(claim, "success")
            released = self.ledger.release(claim.id, claim.token, "success", publishes=publishes, note=note)
            entry, grants = released.entry, released.grants
        else:
            expected = self.ref.cancel(claim)
            cancelled = self.ledger.cancel(claim.id, publishes=publishes, note=note)
            entry, grants = cancelled.entry, cancelled.grants
        assert entry is not None
        self.undoable[entry] = was
        self.after(expected, grants, publishes)

    @precondition(lambda self: self.undoable)
    @rule(data=st.data(), publishes=st.booleans())
    def bring_back(self, data: st.DataObject, publishes: bool) -> None:
        self.bring_back_(data.draw(st.sampled_from(sorted(self.undoable))), publishes)

    def bring_back_(self, entry: int, publishes: bool) -> None:
        was = self.undoable[entry]
        note = Note("end", {}, "ada", way="undo", of=entry)
        why, expected = self.ref.restore(was)
        if why:
            with pytest.raises(ActionRefused, match=why):
                self.ledger.restore(was.id, note=note)
            assert self.ledger.entry(entry).state == "done"
            self.after([])
            return
        del self.undoable[entry]
        reply = self.ledger.restore(was.id, publishes=publishes, note=note)
        assert reply.becomes == self.ref.claims[was.id].state
        self.after(expected, reply.grants, publishes)
        with pytest.raises(ActionRefused, match="is undone already"):
            self.ledger.restore(was.id, note=note)
        self.after([])

    # --- comparison

    def after(self, expected: list[Claim], grants: tuple[Grant, ...] | None = None, publishes: bool = True) -> None:
        """Compare everything there is to be read with the prediction; learn tokens and core ids of new grants.

        ``grants``: what the operation returned to be published, ``None`` for one that returns none.
        """
        ledger, ref = self.ledger, self.ref
        assert ledger.verify() == []
        state, held, waiting = ledger.snapshot(), ledger.held(), ledger.queue(10_000)
        assert broken(state, held) == []
        closing = frozenset(d.key for d in ref.devices.values() if not d.open)
        patient = {c.id for c in ref.line() if c.lane in ref.patience.until}
        impatient = tuple(a for a in waiting if a.allocation_id not in patient)
        assert ref.stopped or idle_beside_waiting(state, impatient, closing) == []
        assert state.paused == ("stopped" if ref.stopped else "")

        real = {a.allocation_id: a for a in held}
        taken = {(a.node, core) for a in held for core in a.cpu_cores if ref.claims[a.allocation_id].cores is None}
        for claim in expected:
            allocation = real[claim.id]
            assert allocation.token > self.last_token, "tokens only grow, in the order of grants"
            self.last_token = claim.token = allocation.token
            if not publishes and claim.kind is Kind.TASK:
                claim.due = ref.now
            if claim.cores is not None:  # it came back to the cores that it had
                assert claim.cores == frozenset(allocation.cpu_cores)
                continue
            claim.cores = frozenset(allocation.cpu_cores)
            node = ref.nodes[allocation.node]
            free = set(next(n for n in state.nodes if n.node == node.name).cpu_cores_free)
            free |= {core for name, core in taken if name == node.name}
            self.cores_well_chosen(allocation.cpu_cores, free, ref.devices[claim.device].near)
            taken -= {(node.name, core) for core in claim.cores}
        if grants is not None:
            tasks = [c for c in expected if c.kind is Kind.TASK]
            assert [(g.allocation_id, g.token, g.queue, g.message) for g in grants] == [
                (c.id, c.token, f"queue of {c.device}", f"message of {c.id}".encode()) for c in tasks
            ]

        def row(c: Claim) -> tuple[Any, ...]:
            devices = (c.device, *c.also)
            return (c.state, devices, c.token, c.cores or frozenset(), c.losses, c.task_id)

        assert {
            a.allocation_id: (
                a.state.value,
                tuple(f"{a.node}/{device}" for device in a.device_ids),
                a.token,
                frozenset(a.cpu_cores),
                a.losses,
                a.task_id,
            )
            for a in held
        } == {c.id: row(c) for c in ref.held()}
        assert [(a.allocation_id, a.queue_position) for a in waiting] == [
            (c.id, i) for i, c in enumerate(ref.line(), 1)
        ]
        assert [a.priority for a in waiting] == [c.req.priority for c in ref.line()]
        assert {a.allocation_id for a in ledger.delayed()} == {c.id for c in ref.in_state("delayed")}
        on_hold = {a.allocation_id: (a.priority, a.on_hold_by) for a in ledger.on_hold()}
        assert on_hold == {c.id: (c.req.priority, "operator") for c in ref.in_state("on_hold")}
        assert {n.node: (n.ram_free_mb, n.ram_withheld_mb) for n in state.nodes} == {
            n.name: (ref.ram_free(n), n.withheld) for n in ref.nodes.values()
        }
        for device in state.devices:
            mine = ref.devices[device.key]
            assert (device.memory_free_mb, device.withheld_mb) == (ref.memory_free(mine), mine.withheld)
            assert device.state == (mine.state if mine.live else "offline"), device
            assert (device.worker or "") == mine.worker
            assert device.affinities == ref.warmth.loaded(device.key, ref.now)
        assert {w.worker for w in state.workers} == set(ref.workers)

    @staticmethod
    def cores_well_chosen(picked: tuple[int, ...], free: set[int], near: frozenset[int]) -> None:
        """A run of free cores near the device if there is one, else a run anywhere, else as many near as can be."""
        n, got = len(picked), set(picked)
        assert got <= free

        def runs(among: set[int]) -> list[set[int]]:
            starts = [i for i in among if all(i + k in among for k in range(n))]
            return [set(range(i, i + n)) for i in starts]

        for cores in (free & near, free):
            if runs(cores):
                assert got in runs(cores)
                return
        assert len(got & near) == min(n, len(free & near))

    def teardown(self) -> None:
        """End everything that lives: then nothing may be left."""
        if not hasattr(self, "ref"):
            return
        for allocation in (*self.ledger.queue(10_000), *self.ledger.delayed(10_000), *self.ledger.on_hold(10_000)):
            assert self.ledger.cancel(allocation.allocation_id).done
        for allocation in self.ledger.held():
            assert self.ledger.release(allocation.allocation_id, allocation.token).done
        self.ref.now += 1000
        self.ledger.settle(o.allocation_id for o in self.ledger.tick().obituaries)
        assert_empty(self.ledger)
        keys = list(self.client.scan_iter(match=f"{{allocator:{self.ledger.pool}}}:*", count=10_000))
        self.client.unlink(*keys)


@pytest.fixture
def machine(redis_server: RedisServer) -> Iterator[type[LedgerMachine]]:
    with redis_server.client() as client:
        yield type("Machine", (LedgerMachine,), {"client": client})


@pytest.mark.timeout(3600)
def test_the_ledger_does_what_brute_force_says(machine: type[LedgerMachine]) -> None:
    run_machine(machine, EXAMPLES, STEPS)
