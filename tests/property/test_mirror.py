"""Whatever happens in a pool, a mirror that is told of changes alone says what the ledger says."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_allocator.errors import AllocatorError
from celery_allocator.ledger import Options
from celery_allocator.model import Kind
from celery_allocator.operations import Actor, Operator, command
from celery_allocator.updates import Relay, change, watch
from tests.support.ledger_pool import LedgerPool
from tests.support.mirror import Mirror, truth

TARGETS = ("n1", "n2", "n1/gpu_0", "n1/gpu_1", "n1/cpu", "n2/gpu_0")
_picks = st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from([0, 2_000, 6_000, 10_000]), st.sampled_from([0, 5, 30])),
    st.tuples(st.just("by_hand"), st.sampled_from([0, 2_000, 10_000]), st.integers(1, 40)),
    st.tuples(
        st.sampled_from(["start", "hold", "unhold", "front", "cancel", "park", "renew", "grow"]), _picks, st.none()
    ),
    st.tuples(st.just("release"), _picks, st.sampled_from(["success", "failure", "requeue", "lost"])),
    st.tuples(st.just("priority"), _picks, st.integers(-5, 5)),
    st.tuples(st.just("time"), st.integers(1, 70), st.none()),
    st.tuples(st.sampled_from(["cordon", "drain", "uncordon"]), st.sampled_from(TARGETS), st.none()),
    st.tuples(st.sampled_from(["pause", "resume", "undo", "redo", "unpark"]), _picks, st.none()),
    st.tuples(st.sampled_from(["leave", "close", "node", "smaller"]), st.sampled_from(["n1", "n2"]), st.none()),
    st.tuples(st.sampled_from(["set-tenant", "reset-tenant"]), st.sampled_from(["", "a"]), st.integers(1, 3)),
    st.tuples(st.sampled_from(["open-breaker", "close-breaker"]), st.just("work"), st.none()),
)


class Pool:
    """A small pool to which things happen; what is refused is no matter."""

    def __init__(self, client: redis.Redis) -> None:
        self.cluster = LedgerPool(client, f"test-{uuid.uuid4().hex[:12]}", Options(max_losses=1))
        self.ledger = self.cluster.ledger
        self.cluster.node("n1", gpus=(10_000, 8_000))
        self.cluster.node("n2")
        self.operator = Operator(self.ledger, Actor("ada"), lambda _: None)
        self.ids: list[str] = []

    def happen(self, what: str, how: Any, more: Any) -> None:
        with contextlib.suppress(AllocatorError):
            self._happen(what, how, more)

    def _happen(self, what: str, how: Any, more: Any) -> None:
        cluster = self.cluster
        if what == "submit":
            eta = cluster.at + more if more else None
            submitted = cluster.submit(how, 1, eta_at=eta, expires_at=cluster.at + 60 if more == 5 else None)
            self.ids.append(submitted.allocation.allocation_id)
        elif what == "by_hand":
            self.ids.append(cluster.by_hand(how, 1, ttl_s=more).allocation.allocation_id)
        elif what == "time":
            cluster.at += how
            self.ledger.tick()
        elif what == "node":
            cluster.node(how, gpus=(10_000, 8_000) if how == "n1" else (10_000,))
        elif what == "smaller":
            cluster.node(how, gpus=(5_000,), slots=None)
        elif what in ("leave", "close"):
            (self.ledger.unregister_worker if what == "leave" else self.ledger.close_worker)(f"w.{how}.gpu_0", "one")
        elif what in ("undo", "redo"):
            getattr(self.operator, what)(cascade=True)
        elif what in ("pause", "resume"):
            self.operator.run(command(what, {}))
        elif what in ("cordon", "drain", "uncordon"):
            self.operator.run(command(what, {"target": how}))
        elif what.endswith("-tenant"):
            weight = {"weight": more} if what == "set-tenant" else {}
            self.operator.run(command(what, {"name": how, **weight}))
        elif what.endswith("-breaker"):
            self.operator.run(command(what, {"name": how}))
        elif self.ids:
            self._to(self.ids[how % len(self.ids)], what, more)

    def _to(self, name: str, what: str, more: Any) -> None:
        if what == "unpark":
            self.ledger.unpark(name, requeue=True)
        elif what == "park":
            self.ledger.park(name, "as asked")
        elif what == "renew":
            self.ledger.renew(name, 50)
        elif what == "start":
            granted = self.ledger.get(name)
            if granted.node:
                self.cluster.start(granted, repeatable=len(name) % 2 == 0)
        elif what == "grow":
            self.ledger.grow(name, self.ledger.get(name).token, 1.5, 2)
        elif what == "release":
            by_hand = self.ledger.get(name).kind is Kind.MANUAL
            self.ledger.release(name, None, "success" if by_hand else more)
        else:
            args = {"allocation_id": name, **({"priority": more} if what == "priority" else {})}
            self.operator.run(command(what, args))


@pytest.mark.timeout(300)
def test_a_mirror_says_what_the_ledger_says(ledger_client: redis.Redis) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(steps, max_size=40), st.integers(0, 40))
    def holds(happened: list[tuple[str, Any, Any]], stop: int) -> None:
        pool = Pool(ledger_client)
        mirror = Mirror()
        position = "-"
        relay = Relay()
        for number, step in enumerate(happened):
            pool.happen(*step)
            if number == stop:  # it stops following, and goes on from there
                followed = watch(pool.ledger, position, block_s=0)
                mirror.follow(followed)
                position = followed.position
                relay.step(pool.ledger)
        pool.cluster.at += 0.001
        pool.ledger.tick()  # what has run out, and nobody has looked at
        mirror.follow(watch(pool.ledger, position, block_s=0))
        assert mirror.content() == truth(pool.ledger)
        # Relayed, it is the same, each once.
        relay.step(pool.ledger)
        Relay().step(pool.ledger)
        rows = pool.ledger.client.xrange(f"{{allocator:{pool.ledger.pool}}}:changes")
        expected = [change(at, event) for at, event in pool.ledger.events()]
        assert [at.decode() for at, _ in rows] == [one.position for one in expected if one is not None]

    holds()
