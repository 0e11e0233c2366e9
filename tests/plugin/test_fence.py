"""The second gate: a child asks the ledger where its worker's lease is over, or was lost since the first gate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery, states

from celery_allocator.ledger import Claim
from celery_allocator.model import Allocation, State
from celery_allocator.plugin.envelope import HEADER
from celery_allocator.plugin.fence import Fence, clock, guard
from celery_allocator.plugin.request import AllocationHooks
from celery_allocator.plugin.running import FENCE, GRANT, MovedOn, on_postrun
from celery_allocator.plugin.session import session
from tests.support.ledger_pool import LedgerPool


def test_it_stands_while_the_lease_does_and_falls_with_each_loss() -> None:
    fence = Fence()
    assert not fence.stands(0)
    fence.extend(clock() + 60)
    assert fence.stands(0)
    fence.lose()
    assert not fence.stands(0)
    fence.extend(clock() + 60)
    assert not fence.stands(0), "what passed the first gate before is to ask"
    assert fence.stands(fence.losses)
    fence.extend(clock() - 1)
    assert not fence.stands(fence.losses)


def test_children_see_what_main_writes_after_they_were_forked() -> None:
    fence = Fence()
    context = multiprocessing.get_context("fork")
    asked, answers = context.Pipe()

    def child() -> None:
        while answers.recv():
            answers.send(fence.stands(0))

    process = context.Process(target=child, daemon=True)
    process.start()

    def stands() -> bool:
        asked.send(True)
        return bool(asked.recv())

    assert not stands()
    fence.extend(clock() + 60)
    assert stands()
    fence.lose()
    assert not stands()
    asked.send(False)
    process.join(10)
    assert process.exitcode == 0


class Task:
    """A task in the child of a worker."""

    def __init__(self, app: Celery, allocation: Allocation | None, losses: int) -> None:
        grant = None if allocation is None else {**allocation.to_wire(), FENCE: losses}
        self.app, self.name, self.ran = app, "work", 0
        self.request = SimpleNamespace(id="t", **{HEADER: {GRANT: grant} if grant else None})
        self.run = self._run

    def _run(self) -> str:
        self.ran += 1
        return "done"


class Plain:
    """Celery's request, as far as the hooks call it here."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None: ...


class Request(AllocationHooks, Plain):
    """A request of a task with an allocation."""

    def __init__(self, app: Celery, claim: Allocation) -> None:
        self._app, self._claim = app, claim


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    return cluster


@pytest.fixture
def app(cluster: LedgerPool) -> Iterator[Celery]:
    with Celery(set_as_current=False) as app:
        current = session(app)
        current._ledger, current._pid = cluster.ledger, multiprocessing.current_process().pid or 0
        current.keeper = SimpleNamespace(fence=Fence(), sampled=None)  # type: ignore[assignment]
        yield app


def test_with_the_lease_standing_nobody_is_asked(app: Celery, cluster: LedgerPool) -> None:
    keeper = session(app).keeper
    assert keeper is not None
    keeper.fence.extend(clock() + 60)  # type: ignore[attr-defined]
    gone = cluster.running(1_000)
    cluster.ledger.release(gone.allocation_id, gone.token)
    task = Task(app, gone, 0)
    guard(task)
    assert task.run() == "done"


def test_without_it_only_the_live_grant_begins(app: Celery, cluster: LedgerPool) -> None:
    live, moved, ended = (cluster.running(1_000, repeatable=True) for _ in range(3))
    cluster.ledger.release(moved.allocation_id, moved.token, "requeue")
    cluster.start(cluster.ledger.get(moved.allocation_id), nonce="again")
    cluster.ledger.release(ended.allocation_id, ended.token)
    for allocation in (moved, ended):
        task = Task(app, allocation, 0)
        guard(task)
        with pytest.raises(MovedOn, match="moved on"):
            task.run()
        assert task.ran == 0
    task = Task(app, live, 0)
    guard(task)
    assert task.run() == "done"


@pytest.mark.parametrize("child_heard", [True, False])
def test_what_a_child_did_not_begin_is_not_ended_when_its_worker_has_it_again(
    app: Celery, cluster: LedgerPool, child_heard: bool
) -> None:
    """The child asks while its worker is asleep; that one wakes and claims the task again before the child releases."""
    held = cluster.running(1_000, repeatable=True)
    cluster.ledger.cordon("n1")  # taken back, and granted to nobody
    cluster.ledger.release(held.allocation_id, held.token, "requeue")
    task = Task(app, held, 0)
    guard(task)
    with pytest.raises(MovedOn) as caught:
        task.run()
    assert cluster.ledger.reclaim(held, "w.n1.gpu_0", repeatable=True)[0] is Claim.STANDS
    if child_heard:
        on_postrun(task_id="t", task=task, retval=caught.value, state=states.IGNORED)
    else:  # the ledger did not answer the child: main releases
        releases: list[str] = []
        keeper = SimpleNamespace(ended=lambda claim, outcome, error, by_child: releases.append(outcome))
        session(app).keeper = keeper  # type: ignore[assignment]
        request = Request(app, held)
        request.on_failure(SimpleNamespace(exception=caught.value), return_ok=True)
        for outcome in releases:
            cluster.ledger.release(held.allocation_id, held.token, outcome)
    assert cluster.ledger.get(held.allocation_id).state is State.WAITING
    assert cluster.ledger.verify() == []


def test_a_process_that_is_ended_before_it_has_stored_its_result_releases_nothing(
    app: Celery, cluster: LedgerPool
) -> None:
    """The task has returned, so Celery says SUCCESS; but nobody would ever write the result."""
    held = cluster.running(1_000, repeatable=True)
    task = Task(app, held, 0)

    def trace() -> None:
        try:
            raise SystemExit(15)  # SIGTERM, while the result is being stored
        finally:
            on_postrun(task_id="t", task=task, retval="done", state=states.SUCCESS)

    with pytest.raises(SystemExit):
        trace()
    assert cluster.ledger.get(held.allocation_id).state is State.RUNNING
    on_postrun(task_id="t", task=task, retval="done", state=states.SUCCESS)
    assert cluster.ledger.held() == ()


def test_a_task_without_an_allocation_is_not_guarded_and_none_is_twice(app: Celery) -> None:
    task = Task(app, None, 0)
    guard(task)
    guarded = task.run
    guard(task)
    assert task.run is guarded
    assert task.run() == "done"
