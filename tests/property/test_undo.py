"""Whatever operators do, undoing all of it leaves the ledger's digest as it was, and redoing all of it brings it back.

The exception is stated, and checked to be true: what was released is not taken from whoever holds its place by now.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from celery_allocator.errors import ActionRefused, AllocatorError
from celery_allocator.ledger import Ledger
from celery_allocator.model import Kind, Requirements
from celery_allocator.operations import Actor, Operator, command, digest
from celery_allocator.operations.commands import Command
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool

TARGETS = ("n1", "n2", "n1/gpu_0", "n1/gpu_1", "n1/cpu", "n2/gpu_0")
PRIORITIES = (-1000, -1, 0, 1, 5, 1000)

_targets = st.tuples(st.sampled_from(["cordon", "drain", "uncordon"]), st.sampled_from(TARGETS))
_pool = st.tuples(st.sampled_from(["pause", "resume"]), st.none())
_breaker = st.tuples(st.sampled_from(["open-breaker", "close-breaker"]), st.sampled_from(["work", "other"]))
_one = st.tuples(st.sampled_from(["hold", "unhold", "front", "cancel", "release"]), st.integers(0, 30))
_priority = st.tuples(st.just("priority"), st.tuples(st.integers(0, 30), st.sampled_from(PRIORITIES)))
_allocate = st.tuples(st.just("allocate"), st.tuples(st.sampled_from([0, 500, 2_000, 9_000]), st.integers(0, 3)))
_quota = st.tuples(st.sampled_from(["blue", "red"]), st.sampled_from([1, 2.5]))
_tenant = st.tuples(st.sampled_from(["set-tenant", "reset-tenant"]), _quota)
actions = st.one_of(_targets, _pool, _breaker, _one, _priority, _allocate, _tenant)


class Desk:
    """A pool in which something is in every state, and an operator who acts on it."""

    def __init__(self, client: redis.Redis) -> None:
        self.cluster = LedgerPool(client, f"test-{uuid.uuid4().hex[:12]}")
        cluster = self.cluster
        cluster.node("n1", gpus=(10_000, 10_000), cores=12)
        cluster.node("n2", gpus=(10_000,), cores=8)
        # A task runs on each GPU, so that those which want all of one never fit, whatever operators do.
        for _ in range(3):
            cluster.running(6_000, 1, 100)
        self.waiting = [cluster.submit(10_000, 1, priority=n % 2).allocation.allocation_id for n in range(4)]
        self.waiting += [cluster.submit(10_000, 2, eta_at=cluster.at + 500).allocation.allocation_id for _ in range(2)]
        self.waiting.append(cluster.submit(10_000, 3, expires_at=cluster.at + 900).allocation.allocation_id)
        self.by_hand = [cluster.by_hand(1_000, 2, 50).allocation.allocation_id for _ in range(3)]
        self.by_hand.append(cluster.by_hand(500, 1, 50, gpu_count=2).allocation.allocation_id)
        self.operator = Operator(cluster.ledger, Actor("ada", "test", "a reason"), lambda _: None)
        self._made = 0

    @property
    def ledger(self) -> Ledger:
        return self.cluster.ledger

    def act(self, what: str, how: object) -> None:
        """Take one action; one that is refused must have changed nothing."""
        before, entries = digest(self.ledger), len(self.ledger.journal(1000))
        try:
            if what == "allocate":
                self._allocate(*how)  # type: ignore[misc]
            else:
                self.operator.run(self._command(what, how))
        except AllocatorError:
            assert (digest(self.ledger), len(self.ledger.journal(1000))) == (before, entries)
        else:
            assert len(self.ledger.journal(1000)) == entries + 1

    def _command(self, what: str, how: object) -> Command:
        if what in ("pause", "resume"):
            return command(what, {})
        if what in ("cordon", "drain", "uncordon"):
            return command(what, {"target": how})
        if what.endswith("-breaker"):
            return command(what, {"name": how})
        if what.endswith("-tenant"):
            name, weight = how  # type: ignore[misc]
            return command(what, {"name": name, **({"weight": weight, "tasks": 3} if what == "set-tenant" else {})})
        if what == "priority":
            number, priority = how  # type: ignore[misc]
            return command(what, {"allocation_id": self._pick(self.waiting, number), "priority": priority})
        among = self.by_hand if what == "release" else [*self.waiting, *self.by_hand]
        return command(what, {"allocation_id": self._pick(among, how)})

    @staticmethod
    def _pick(among: list[str], number: object) -> str:
        assert isinstance(number, int)
        return among[number % len(among)]

    def _allocate(self, gpu: int, cores: int) -> None:
        self._made += 1
        name = f"made{self._made}"
        note = self.operator.actor.note("allocate", {"allocation_id": name})
        need = Requirements(gpu, max(cores, 1), 10)
        self.ledger.submit(name, f"task of {name}", "by hand", need, kind=Kind.MANUAL, ttl_s=100.0, note=note)
        self.by_hand.append(name)

    def undo_all(self) -> bool:
        """Undo from the latest back. False if something is in the way, which is then checked to be so."""
        while any(entry.state == "done" for entry in self.ledger.journal(1000)):
            before = digest(self.ledger)
            try:
                self.operator.undo()
            except ActionRefused as error:
                assert digest(self.ledger) == before
                self.check_taken(error)
                return False
        return True

    def redo_all(self) -> bool:
        """Redo in the order in which they were taken."""
        while any(entry.state == "undone" for entry in self.ledger.journal(1000)):
            try:
                self.operator.redo()
            except ActionRefused as error:
                self.check_taken(error)
                return False
        return True

    def check_taken(self, error: ActionRefused) -> None:
        """Only what was granted meanwhile to somebody else, or itself, may be in the way."""
        text = str(error)
        if "is taken" in text:
            assert any(a.allocation_id in text for a in self.ledger.held())
        else:
            # A place in line was granted: it holds, and can neither be put on hold nor get another priority.
            names = [a.allocation_id for a in self.ledger.held() if a.allocation_id in text]
            assert names, text


@pytest.fixture
def desk(ledger_client: redis.Redis) -> Callable[[], Desk]:
    return lambda: Desk(ledger_client)


_settings = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.timeout(600)
@_settings
@given(taken=st.lists(actions, min_size=1, max_size=14))
def test_undoing_everything_and_redoing_everything(desk: Callable[[], Desk], taken: list[tuple[str, object]]) -> None:
    at = desk()
    before = digest(at.ledger)
    for what, how in taken:
        at.act(what, how)
    after = digest(at.ledger)
    if not at.undo_all():
        event("a place was taken")
        return
    assert digest(at.ledger) == before
    assert_right(at.ledger)
    assert at.redo_all()
    assert digest(at.ledger) == after
    assert_right(at.ledger)
    assert at.undo_all()
    assert digest(at.ledger) == before


@pytest.mark.timeout(600)
@_settings
@given(
    taken=st.lists(actions, min_size=2, max_size=10),
    picks=st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=10),
)
def test_undoing_and_redoing_in_any_order(
    desk: Callable[[], Desk], taken: list[tuple[str, object]], picks: list[tuple[bool, int]]
) -> None:
    """With cascades: what is refused has changed nothing, and in the end it can all be undone."""
    at = desk()
    before = digest(at.ledger)
    for what, how in taken:
        at.act(what, how)
    entries = at.ledger.journal(1000)
    for again, number in picks if entries else []:
        chosen = entries[number % len(entries)].number
        was = digest(at.ledger)
        way = "redo" if again else "undo"
        try:
            plan = at.operator.plan(way, chosen, cascade=True)
        except ActionRefused:
            assert digest(at.ledger) == was
            continue
        assert plan.entries[-1].number == chosen
        try:
            (at.operator.redo if again else at.operator.undo)(chosen, cascade=True)
        except ActionRefused as error:
            at.check_taken(error)
            event("a place was taken")
        assert_right(at.ledger)
    if at.undo_all():
        assert digest(at.ledger) == before
