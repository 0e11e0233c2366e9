"""Random operations in random order on the real ledger, each compared with what brute force says should happen.

After every step: the ledger's own ``verify`` finds nothing; capacity adds up from ``snapshot`` and ``held``; nobody
waits who fits, but for where a word of affinity is loaded, and for that not for long; and every allocation is in the
state, on the device and in the place in line that :mod:`tests.property.reference` predicts. ``LEDGER_EXAMPLES`` and
``LEDGER_STEPS`` set how long to look.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from celery_allocator.errors import (
    ActionRefused,
    AllocationNotFound,
    StaleTokenError,
    UnknownTargetError,
)
from celery_allocator.model import Kind, RamUse, Requirements, Strategy, Withheld
from tests.property.ledger_draws import MORE, NODES, TARGETS, USUAL, requirements, unusual
from tests.property.ledger_steps import LedgerSteps
from tests.property.running import run_machine
from tests.support.redis_server import RedisServer

EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "160"))
STEPS = int(os.environ.get("LEDGER_STEPS", "50"))


class LedgerMachine(LedgerSteps):
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
        self.begin_((n1, n2), slots, words=words, **affinity)

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

    @rule(publishes=st.booleans())
    def tick(self, publishes: bool) -> None:
        self.tick_(publishes)

    @precondition(lambda self: self.words)
    @rule()
    def repair(self) -> None:
        """Nothing changes, unless a node has shrunk; but who waits for where a word is loaded waits anew."""
        self.beside_room.clear()
        expected, left = self.ref.repair()
        reply = self.ledger.repair()
        assert {line.split()[0] for line in reply.left} == left
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

    @precondition(lambda self: self.undoable)
    @rule(data=st.data(), publishes=st.booleans())
    def bring_back(self, data: st.DataObject, publishes: bool) -> None:
        self.bring_back_(data.draw(st.sampled_from(sorted(self.undoable))), publishes)


@pytest.fixture
def machine(redis_server: RedisServer) -> Iterator[type[LedgerMachine]]:
    with redis_server.client() as client:
        yield type("Machine", (LedgerMachine,), {"client": client})


@pytest.mark.timeout(3600)
def test_the_ledger_does_what_brute_force_says(machine: type[LedgerMachine]) -> None:
    run_machine(machine, EXAMPLES, STEPS)
