"""Random work with and without affinity on the real ledger: nobody waits beside room but for that, and not for long.

After every step ``verify`` finds nothing and capacity adds up. What waits beside room (by the snapshot alone) has an
affinity, and has done so for no longer in all than the bound and a tick. At the end nothing is held or left.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from celery_allocator.ledger import Grant, Options
from celery_allocator.model import Allocation, Requirements, State, Strategy
from celery_allocator.overview.reasons import fitting
from tests.property.running import run_machine
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "25"))
STEPS = int(os.environ.get("LEDGER_STEPS", "40"))
#: Seconds between ticks, and for which one may wait for a GPU where its word is loaded.
TICK_S, WAIT_S = 1.0, 3.0
AGES = 1e7

_numbers = itertools.count()

asked = st.builds(
    Requirements,
    gpu_memory_mb=st.sampled_from([2, 2, 5, 10, 0]),
    cpu_cores=st.sampled_from([1, 1, 3]),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    tenant=st.sampled_from(["", "", "a", "b"]),
    affinity=st.sampled_from(["", "red", "red", "green", "blue", "grey"]),
    expected_runtime_s=st.sampled_from([0, 0, 1, 2, 5, 60]),
)


class AffinityMachine(RuleBasedStateMachine):
    """One pool, from its first node to its end."""

    client: redis.Redis

    @initialize(
        backfill=st.sampled_from(["greedy", "greedy", "greedy", "easy", "none"]),
        slots=st.sampled_from([1, 1, 2, 4]),
        affinity_keeps=st.sampled_from([1, 1, 3]),
        affinity_s=st.sampled_from([20.0, 3600.0]),
    )
    def begin(self, backfill: str, slots: int, **options: Any) -> None:
        made = Options(max_losses=2, backfill=backfill, affinity_wait_s=WAIT_S, **options)
        self.cluster = LedgerPool(self.client, f"affinity-{os.getpid()}-{next(_numbers)}", made)
        self.ledger = self.cluster.ledger
        self.backfill, self.slots = backfill, slots
        #: Seconds for which each has waited beside room since it was last granted.
        self.waited: dict[str, float] = defaultdict(float)
        self.incarnations: dict[str, int] = defaultdict(int)
        for node in ("n1", "n2", "n3"):
            self.cluster.node(node, gpus=(10,) if node == "n1" else (10, 10), cores=8, slots=None, lease_s=AGES)
            for device in ("gpu_0", "cpu") if node == "n1" else ("gpu_0", "gpu_1", "cpu"):
                self.worker_(node, device)
        self.after()

    # --- rules

    @rule(requirements=asked, strategy=st.sampled_from([Strategy.BEST_FIT, Strategy.SPREAD, Strategy.FIRST_FIT]),
          later=st.sampled_from([0, 0, 0, 2]))  # fmt: skip
    def submit(self, requirements: Requirements, strategy: Strategy, later: int) -> None:
        self.submit_(requirements, strategy=strategy, eta_at=self.cluster.at + later if later else None)
        self.after()

    @rule(requirements=asked, count=st.integers(2, 6))
    def submit_many(self, requirements: Requirements, count: int) -> None:
        for _ in range(count):
            self.submit_(requirements)
            self.after()

    @rule(seconds=st.sampled_from([0.4, 1, 1, 2, 4]))
    def time_passes(self, seconds: float) -> None:
        left = seconds
        while left > 0:
            step = min(TICK_S, left)
            for allocation in self.beside_room():
                self.waited[allocation.allocation_id] += step
            left -= step
            self.begin_(self.cluster_tick(step))
            self.after()

    @rule(data=st.data(), outcome=st.sampled_from(["success", "success", "failure", "requeue", "lost"]))
    def one_ends(self, data: st.DataObject, outcome: str) -> None:
        held = sorted(a.allocation_id for a in self.ledger.held())
        if held:
            self.begin_(self.ledger.release(data.draw(st.sampled_from(held)), None, outcome).grants)
            self.after()

    @rule(data=st.data(), what=st.sampled_from(["cancel", "front", "priority"]))
    def one_that_waits(self, data: st.DataObject, what: str) -> None:
        waiting = sorted(a.allocation_id for a in self.ledger.queue())
        if not waiting:
            return
        name = data.draw(st.sampled_from(waiting))
        if what == "cancel":
            assert self.ledger.cancel(name).done
            self.ledger.settle([name])
        elif what == "front":
            self.ledger.front(name)
        else:
            self.ledger.prioritize(name, data.draw(st.sampled_from([-1, 0, 2])))
        self.after()

    @rule(device=st.sampled_from(["n1/gpu_0", "n2/gpu_0", "n3/gpu_1", "n2/cpu"]), dies=st.booleans())
    def a_worker_is_replaced(self, device: str, dies: bool) -> None:
        node, _, device_id = device.partition("/")
        if dies:
            self.begin_(self.ledger.unregister_worker(f"w.{node}.{device_id}", self.incarnation(device)))
            self.settle_()
            self.after()
        self.incarnations[device] += 1
        self.worker_(node, device_id)
        self.settle_()
        self.after()

    @rule()
    def repair(self) -> None:
        self.begin_(self.ledger.repair().grants)
        self.waited.clear()  # the time that they have waited begins anew
        self.after()

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for _ in range(300):
            held = [a.allocation_id for a in self.ledger.held()]
            for name in held:
                self.begin_(self.ledger.release(name, None, "success").grants)
            self.begin_(self.cluster_tick(TICK_S))
            state = self.ledger.snapshot()
            if not (state.waiting or state.delayed or state.granted or state.running):
                break
        self.settle_()
        assert_empty(self.ledger)

    # --- what they are made of

    def incarnation(self, device: str) -> str:
        return f"{self.incarnations[device]}"

    def worker_(self, node: str, device_id: str) -> None:
        incarnation = self.incarnation(f"{node}/{device_id}")
        previous = f"{int(incarnation) - 1}"
        grants = self.cluster.worker(node, device_id, incarnation, slots=self.slots, lease_s=AGES, takeover=previous)
        self.begin_(grants)

    def submit_(self, requirements: Requirements, **how: Any) -> None:
        name = f"a{next(_numbers)}"
        made = self.ledger.submit(name, f"task of {name}", "work", requirements, message=b"m", **how).allocation
        if made.state is State.GRANTED:
            self.start_(made)

    def cluster_tick(self, seconds: float) -> tuple[Grant, ...]:
        self.cluster.at += seconds
        ticked = self.ledger.tick()
        self.ledger.settle(o.allocation_id for o in ticked.obituaries)
        return ticked.grants

    def begin_(self, grants: tuple[Grant, ...]) -> None:
        for grant in grants:
            held = self.ledger.get(grant.allocation_id)
            if held.state is State.GRANTED and held.token == grant.token:
                self.start_(held)

    def start_(self, held: Allocation) -> None:
        device = f"{held.node}/{held.device_id}"
        self.cluster.start(held, repeatable=True, nonce=f"{held.token}", incarnation=self.incarnation(device))
        self.waited.pop(held.allocation_id, None)

    def settle_(self) -> None:
        self.ledger.settle(o.allocation_id for o in self.ledger.tick().obituaries)

    # --- what must hold

    def beside_room(self) -> list[Allocation]:
        """What waits, and has room by the snapshot."""
        state = self.ledger.snapshot()
        return [a for a in self.ledger.queue(1000) if fitting(a.requirements, a.kind, state)]

    def after(self) -> None:
        assert_right(self.ledger)
        if self.backfill != "greedy":
            return  # others may be before it, or something be kept for them
        for allocation in self.beside_room():
            assert allocation.requirements.affinity, f"{allocation} waits beside room"
            waited = self.waited[allocation.allocation_id]
            assert waited <= WAIT_S + TICK_S, f"{allocation} has waited for {waited} s for affinity"


@pytest.fixture
def machine(redis_server: RedisServer) -> Iterator[type[AffinityMachine]]:
    with redis_server.client() as client:
        yield type("Machine", (AffinityMachine,), {"client": client})


@pytest.mark.timeout(3600)
def test_nobody_waits_beside_room_but_for_affinity_and_not_for_long(machine: type[AffinityMachine]) -> None:
    run_machine(machine, EXAMPLES, STEPS)
