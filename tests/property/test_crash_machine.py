"""Callers die between any two steps, and the broker repeats, reorders and loses messages: nothing is lost or run twice.

The ledger is real; producers, workers and broker are played. A caller that dies has got its reply and does nothing more
with it: what it should have published, settled or run is left to the ledger. After every step ``verify`` finds nothing.
At the end time goes on with everybody well: then each task that was accepted has been started or has ended, and the
ledger is empty. ``LEDGER_CRASH_EXAMPLES`` and ``LEDGER_STEPS`` set how long to look.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from celery_allocator.errors import ActionRefused, StaleTokenError
from celery_allocator.ledger import Claim, Grant, Ledger, Note, Obituary, Options, keys
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements, State
from tests.property.running import run_machine
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.redis_server import RedisServer

EXAMPLES = int(os.environ.get("LEDGER_CRASH_EXAMPLES", "60"))
STEPS = int(os.environ.get("LEDGER_STEPS", "50"))
LEASE_S, DEADLINE_S = 10, 5
_pools = itertools.count()

GPUS = tuple(DeviceInventory(f"gpu_{i}", i, f"GPU-{i}", "sim", 8) for i in range(2))
NODE = NodeInventory("n1", (0, 1, 2, 3), 100, GPUS)
needs = st.builds(Requirements, gpu_memory_mb=st.sampled_from([4, 8]), cpu_cores=st.sampled_from([1, 2, 3]))
#: How many of the things that it should do next a caller does before it dies; 99: all of them.
survives = st.sampled_from([99, 99, 0, 1])


@dataclass
class Worker:
    """One worker and what its processes run: allocation id → token."""

    device: str
    life: int
    running: dict[str, int]
    alive: bool = True

    @property
    def name(self) -> str:
        return f"w.{self.device}"


class CrashMachine(RuleBasedStateMachine):
    """One pool with two devices."""

    client: redis.Redis

    @initialize()
    def begin(self) -> None:
        self.now = 1_700_000_000.0
        options = Options(start_deadline_s=DEADLINE_S, max_losses=2, events_maxlen=1000)
        self.ledger = Ledger(
            self.client, f"crash-{os.getpid()}-{next(_pools)}", clock=lambda: self.now, options=options
        )
        self.names = itertools.count()
        self.box: list[tuple[str, str, int]] = []  # device, allocation, token: what lies in the broker
        self.accepted: set[str] = set()
        self.started: set[tuple[str, int]] = set()
        self.ended: set[str] = set()
        self.ledger.register_node(NODE, LEASE_S)
        self.workers = {gpu.device_id: Worker(gpu.device_id, 0, {}) for gpu in GPUS}
        for worker in self.workers.values():
            self.serve(worker, "")

    # --- what callers do with replies

    def publish(self, grants: Iterable[Grant], survives: int = 99) -> None:
        self.box += [(grant.queue, grant.allocation_id, grant.token) for grant in tuple(grants)[:survives]]

    def settle(self, obituaries: Iterable[Obituary], survives: int = 99) -> None:
        """Write results, then tell the ledger: whoever dies in between has written a result that is written again."""
        names = [obituary.allocation_id for obituary in obituaries]
        self.ended |= set(names[:survives])
        if survives >= len(names):
            self.ledger.settle(names)

    def serve(self, worker: Worker, takeover: str) -> None:
        self.publish(
            self.ledger.register_worker(
                worker.name, str(worker.life), "n1", worker.device, slots=2, queue=worker.device, lease_s=LEASE_S,
                takeover=takeover,
            )
        )  # fmt: skip

    # --- rules

    @rule(
        need=needs,
        eta_s=st.sampled_from([None, None, 3]),
        expires_s=st.sampled_from([None, None, 2, 20]),
        dies=st.booleans(),
    )
    def submit(self, need: Requirements, eta_s: int | None, expires_s: int | None, dies: bool) -> None:
        name = f"c{next(self.names)}"
        eta = None if eta_s is None else self.now + eta_s
        expires = None if expires_s is None else self.now + expires_s
        reply = self.ledger.submit(name, name, "work", need, message=b"m", eta_at=eta, expires_at=expires)
        self.accepted.add(name)
        if reply.allocation.state is State.GRANTED and not dies:
            self.box.append((str(reply.allocation.queue), name, reply.allocation.token))

    @precondition(lambda self: self.box)
    @rule(data=st.data(), twice=st.booleans(), late=st.booleans(), dies=st.sampled_from([False, False, False, True]))
    def deliver(self, data: st.DataObject, twice: bool, late: bool, dies: bool) -> None:
        """Any message, in any order, perhaps leaving a copy; the worker may die as soon as the gate has opened."""
        at = data.draw(st.integers(0, len(self.box) - 1))
        device, name, token = self.box[at] if twice else self.box.pop(at)
        worker = self.workers[device]
        if not worker.alive:
            return
        nonce = f"delivery {next(self.names)}"
        try:
            self.ledger.start(name, token, worker.name, str(worker.life), nonce, late)
        except StaleTokenError:
            return
        assert (name, token) not in self.started, "one grant starts once"
        assert name not in self.ended, "what has ended does not start"
        assert all(name not in other.running for other in self.workers.values() if other.alive), "it runs already"
        self.started.add((name, token))
        worker.running[name] = token
        if dies:
            self.worker_dies(device)

    @precondition(lambda self: self.box)
    @rule(data=st.data())
    def the_broker_loses_a_message(self, data: st.DataObject) -> None:
        self.box.pop(data.draw(st.integers(0, len(self.box) - 1)))

    @precondition(lambda self: any(worker.running for worker in self.workers.values()))
    @rule(data=st.data(), survives=survives, outcome=st.sampled_from(["success", "success", "failure", "requeue"]))
    def release(self, data: st.DataObject, survives: int, outcome: str) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers.values() if w.running]))
        name = data.draw(st.sampled_from(sorted(worker.running)))
        token = worker.running.pop(name)
        released = self.ledger.release(name, token, outcome)
        assert released.done
        self.publish(released.grants, survives)
        assert not self.ledger.release(name, token, outcome).done, "slots come back once"
        if outcome != "requeue":
            self.ended.add(name)

    @precondition(lambda self: self.accepted - self.ended)
    @rule(data=st.data(), survives=survives)
    def cancel(self, data: st.DataObject, survives: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.accepted - self.ended)))
        reply = self.ledger.cancel(name)
        self.publish(reply.grants, survives)
        if reply.obituary is not None:
            self.settle([reply.obituary], survives)

    @precondition(lambda self: self.ledger.queue() or self.ledger.delayed())
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        waiting = [a.allocation_id for a in (*self.ledger.queue(), *self.ledger.delayed())]
        self.ledger.hold(data.draw(st.sampled_from(sorted(waiting))))

    @precondition(lambda self: self.ledger.on_hold())
    @rule(data=st.data(), survives=survives)
    def unhold(self, data: st.DataObject, survives: int) -> None:
        on_hold = [a.allocation_id for a in self.ledger.on_hold()]
        self.publish(self.ledger.unhold(data.draw(st.sampled_from(sorted(on_hold)))).grants, survives)

    @rule(stop=st.booleans(), survives=survives)
    def pause(self, stop: bool, survives: int) -> None:
        self.publish(self.ledger.pause(stop=stop).grants, survives)

    @precondition(lambda self: self.accepted - self.ended)
    @rule(data=st.data(), settles=survives, between_s=st.sampled_from([0, 1, 6]), survives=survives)
    def cancel_and_undo(self, data: st.DataObject, settles: int, between_s: int, survives: int) -> None:
        """Whoever cancels may die before the result is written, or after; a tick may write it in between."""
        name = data.draw(st.sampled_from(sorted(self.accepted - self.ended)))
        done = self.ledger.cancel(name, note=Note("cancel", {}, "ada"))
        self.publish(done.grants, survives)
        if done.obituary is None:
            return
        self.settle([done.obituary], settles)
        if between_s:
            self.tick(between_s, 99, settles)
        try:
            back = self.ledger.restore(name, note=Note("cancel", {}, "ada", way="undo", of=done.entry))
        except ActionRefused as error:
            if "has expired" not in str(error):
                raise
            return
        self.ended.discard(name)  # its result is forgotten
        self.publish(back.grants, survives)

    @rule(passes_s=st.sampled_from([1, 3]))
    def the_server_changes(self, passes_s: int) -> None:
        """Another run of it, which has lost nothing: granting pauses until the workers that live have reported."""
        self.ledger.client.hset(keys.key(self.ledger.pool, "meta"), "run", "a" * 40)
        self.tick(passes_s, 99, 99)
        for worker in self.workers.values():
            if worker.alive:
                self.report(worker)

    def report(self, worker: Worker) -> None:
        number, _ = self.ledger.rejoin(worker.name, "", LEASE_S)
        self.publish(
            self.ledger.register_worker(
                worker.name, str(worker.life), "n1", worker.device, slots=2, queue=worker.device, lease_s=LEASE_S,
                report=number, runs=tuple(worker.running),
            )
        )  # fmt: skip

    @precondition(lambda self: any(worker.running and worker.alive for worker in self.workers.values()))
    @rule(data=st.data(), hold=st.booleans())
    def a_worker_is_thought_dead_and_comes_back(self, data: st.DataObject, hold: bool) -> None:
        """What it ran is in line again, perhaps on hold, and is its own again if nobody else has begun it."""
        worker = data.draw(st.sampled_from([w for w in self.workers.values() if w.running and w.alive]))
        before = {name: self.ledger.get(name) for name in worker.running}
        self.now += LEASE_S + 1
        for other in self.workers.values():
            if other.alive and other is not worker:
                self.ledger.heartbeat(other.name, str(other.life), LEASE_S)
        ticked = self.ledger.tick()
        self.publish(ticked.grants)
        names = {name for name in before if name not in {o.allocation_id for o in ticked.obituaries}}
        self.settle(ticked.obituaries)
        for allocation in self.ledger.queue() if hold else ():
            if allocation.allocation_id in names:
                self.ledger.hold(allocation.allocation_id)
        number, _ = self.ledger.rejoin(worker.name, "", LEASE_S)
        for name in list(worker.running):
            verdict, _ = self.ledger.reclaim(before[name], worker.name, repeatable=True, message=b"m", report=number)
            if verdict is not Claim.STANDS:
                del worker.running[name]
                continue
            now = self.ledger.get(name)
            assert (now.state, now.token, now.on_hold_by) == (State.RUNNING, before[name].token, None)
        self.publish(self.ledger.register_node(NODE, LEASE_S))
        self.report(worker)

    @rule(passes_s=st.sampled_from([1, 3, 6]), publishes=survives, settles=survives)
    def tick(self, passes_s: int, publishes: int, settles: int) -> None:
        self.now += passes_s
        for worker in self.workers.values():
            if worker.alive:
                assert self.ledger.heartbeat(worker.name, str(worker.life), LEASE_S)
        ticked = self.ledger.tick()
        self.publish(ticked.grants, publishes)
        self.settle(ticked.obituaries, settles)

    @rule(device=st.sampled_from([gpu.device_id for gpu in GPUS]))
    def worker_dies(self, device: str) -> None:
        """With its children: what they ran stops."""
        self.workers[device].alive = False
        self.workers[device].running.clear()

    @precondition(lambda self: any(not worker.alive for worker in self.workers.values()))
    @rule()
    def workers_restart(self) -> None:
        """Their hosts are there again, and the new ones know that the old ones' processes are gone."""
        self.publish(self.ledger.register_node(NODE, LEASE_S))
        for worker in self.workers.values():
            if not worker.alive:
                worker.life, worker.alive = worker.life + 1, True
                self.serve(worker, takeover=str(worker.life - 1))

    @invariant()
    def the_ledger_is_right(self) -> None:
        if hasattr(self, "ledger"):
            assert_right(self.ledger)

    def teardown(self) -> None:
        """Everybody is well from here on: everything that was accepted comes to its end."""
        if not hasattr(self, "ledger"):
            return
        self.workers_restart()
        for allocation in self.ledger.on_hold(10_000):
            self.publish(self.ledger.unhold(allocation.allocation_id).grants)
        self.publish(self.ledger.pause(stop=False).grants)
        for _ in range(3 * len(self.accepted) + 5):
            for worker in self.workers.values():
                for name, token in list(worker.running.items()):
                    self.publish(self.ledger.release(name, token, "success").grants)
                    self.ended.add(name)
                    del worker.running[name]
            self.tick(DEADLINE_S + 1, 99, 99)
            for device, name, token in self.box:
                worker = self.workers[device]
                try:
                    self.ledger.start(name, token, worker.name, str(worker.life), f"d{next(self.names)}", False)
                except StaleTokenError:
                    continue
                assert (name, token) not in self.started
                self.started.add((name, token))
                worker.running[name] = token
            self.box.clear()
            if not (self.ledger.held() or self.ledger.queue() or self.ledger.delayed()):
                break
        self.tick(1, 99, 99)
        assert self.accepted == self.ended, "whatever was accepted has ended, and somebody was told"
        assert_empty(self.ledger)
        keys = list(self.client.scan_iter(match=f"{{allocator:{self.ledger.pool}}}:*", count=10_000))
        self.client.unlink(*keys)


@pytest.fixture
def machine(redis_server: RedisServer) -> Iterator[type[CrashMachine]]:
    with redis_server.client() as client:
        yield type("Machine", (CrashMachine,), {"client": client})


@pytest.mark.timeout(3600)
def test_callers_may_die_between_any_two_steps(machine: type[CrashMachine]) -> None:
    run_machine(machine, EXAMPLES, STEPS)
