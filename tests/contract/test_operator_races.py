"""Many operators at once: each action is taken, undone and redone by exactly one, and no place is held twice."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from typing import Any

import pytest
import redis

from celery_allocator.errors import ActionRefused, AllocatorError, DuplicateAction, JournalMoved
from celery_allocator.ledger import Ledger
from celery_allocator.model import Kind, Requirements, State
from celery_allocator.operations import (
    Actor,
    Cancel,
    Cordon,
    Drain,
    Hold,
    Operator,
    Pause,
    Priority,
    Release,
    Uncordon,
    digest,
)
from celery_allocator.operations.commands import Command
from tests.contract.test_ledger_races import race
from tests.support.ledger_checks import assert_right, over_capacity
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    """A pool on the server's own clock; what waits fits nowhere."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.ledger = Ledger(ledger_client, pool)
    cluster.node(gpus=(10_000, 10_000), cores=16, slots=8, lease_s=600)
    for name in ("one", "two"):
        cluster.running(4_000, id=name)
    for n in range(3):
        cluster.submit(10_000, 16, id=f"w{n}")
    return cluster


def operator(ledger: Ledger, i: int = 0, once: str = "") -> Operator:
    return Operator(ledger, Actor(f"operator {i}", "test", once=once), lambda _: None)


ACTIONS: list[Command] = [Cordon("n1"), Drain("n1/gpu_0"), Pause(), Hold("w1"), Priority("w2", 5), Cancel("w0")]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.action)
def test_twenty_undo_and_redo_the_same_entry(
    cluster: LedgerPool, redis_server: RedisServer, pool: str, action: Command
) -> None:
    before = digest(cluster.ledger)
    operator(cluster.ledger).run(action)
    after = digest(cluster.ledger)
    for way, digested in (("undo", before), ("redo", after), ("undo", before)):

        def again(ledger: Ledger, i: int, way: str = way) -> str:
            try:
                (effect,) = getattr(operator(ledger, i), way)(1)
            except ActionRefused as error:
                return type(error).code
            return f"done {effect.entry}"

        replies = race(redis_server, pool, 20, again)
        assert Counter(replies) == {"done 1": 1, "action_refused": 19}
        assert digest(cluster.ledger) == digested
    assert cluster.ledger.journal_page().seen == 4
    assert_right(cluster.ledger)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.action)
def test_twenty_act_under_the_same_key(
    cluster: LedgerPool, redis_server: RedisServer, pool: str, action: Command
) -> None:
    def act(ledger: Ledger, i: int) -> int:
        try:
            operator(ledger, i, "key").run(action)
        except DuplicateAction as error:
            return -error.entry
        return 1

    assert Counter(race(redis_server, pool, 20, act)) == {1: 1, -1: 19}
    assert len(cluster.ledger.journal()) == 1

    def undo(ledger: Ledger, i: int) -> int:
        try:
            operator(ledger, i, "key of the undo").undo(1)
        except DuplicateAction as error:
            return -error.entry
        return 1

    assert Counter(race(redis_server, pool, 20, undo)) == {1: 1, -1: 19}
    assert cluster.ledger.entry(1).state == "undone"


def test_twenty_undo_the_latest_each_another_one_or_are_told(
    cluster: LedgerPool, redis_server: RedisServer, pool: str
) -> None:
    before = digest(cluster.ledger)
    for n in range(10):
        operator(cluster.ledger).run(Priority(f"w{n % 3}", n + 1))

    def undo(ledger: Ledger, i: int) -> tuple[int, ...]:
        try:
            return tuple(effect.entry or 0 for effect in operator(ledger, i).undo())
        except ActionRefused:
            return ()

    undone = [entry for reply in race(redis_server, pool, 20, undo) for entry in reply]
    assert len(undone) == len(set(undone)) >= 1
    assert {e.number for e in cluster.ledger.journal() if e.state == "undone"} == set(undone)
    # Whoever came too late meant one that is undone; the rest goes one by one.
    while any(entry.state == "done" for entry in cluster.ledger.journal()):
        operator(cluster.ledger).undo()
    assert digest(cluster.ledger) == before


def test_cascades_and_actions_on_the_same_at_once(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    """Whatever comes in between: nothing is in force whose basis was undone, and in the end all of it can be."""
    before = digest(cluster.ledger)
    operator(cluster.ledger).run(Cordon("n1"))

    def act(ledger: Ledger, i: int) -> None:
        chief = operator(ledger, i)
        try:
            if i % 3 == 0:
                chief.undo(1, cascade=True)
            elif i % 3 == 1:
                chief.redo(1, cascade=True)
            else:
                for command in (Drain("n1/gpu_0"), Uncordon("n1/gpu_1"), Cordon("n1")):
                    chief.run(command)
        except ActionRefused:
            pass

    race(redis_server, pool, 18, act)
    assert_right(cluster.ledger)
    entries = cluster.ledger.journal(1000)
    assert len(entries) == 1 + 6 * 3
    if cluster.ledger.entry(1).state == "undone":
        first = cluster.ledger.entry(1)
        assert not [e for e in entries if e.state == "done" and e.done_op < (first.undone_op or 0)]
    while any(entry.state == "done" for entry in cluster.ledger.journal(1000)):
        operator(cluster.ledger).undo()
    assert digest(cluster.ledger) == before


def test_hold_and_its_undo_race_the_grant(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    """Thirty are put on hold and let go on, while room is made for them: each is granted once, or waits."""
    cluster.node("n2", gpus=(30_000,), cores=8, slots=8, lease_s=600)
    holders = [cluster.by_hand(30_000, 1, ttl_s=600, id="holder").allocation.allocation_id]
    names = [cluster.submit(1_000 * 11, id=f"h{i}").allocation.allocation_id for i in range(4)]
    assert {cluster.ledger.get(name).state for name in names} == {State.WAITING}

    def act(ledger: Ledger, i: int) -> list[tuple[str, int]]:
        granted: list[tuple[str, int]] = []
        chief = Operator(
            ledger, Actor(f"o{i}"), lambda effect: granted.extend((g.allocation_id, g.token) for g in effect.grants)
        )
        if i == 0:
            return [(g.allocation_id, g.token) for name in holders for g in ledger.release(name).grants]
        try:
            effect = chief.run(Hold(names[i % 4]))
        except AllocatorError:
            return granted
        while True:
            try:
                chief.undo(effect.entry)
            except JournalMoved:  # overtaken too often: what is on hold must not stay so
                continue
            except AllocatorError:
                pass
            return granted

    granted = [one for reply in race(redis_server, pool, 17, act) for one in reply]
    held = {a.allocation_id: a.token for a in cluster.ledger.held() if a.allocation_id in names}
    assert len(held) == 2, "as many as there is room for"
    assert Counter(granted) == Counter(held.items()), "each grant told to exactly one caller"
    assert_right(cluster.ledger)


@pytest.mark.parametrize("submitters", [1, 15])
def test_the_undo_of_a_release_races_submissions_for_the_same_place(
    cluster: LedgerPool, redis_server: RedisServer, pool: str, submitters: int
) -> None:
    cluster.node("n2", gpus=(30_000,), cores=2, slots=1, lease_s=600)
    cluster.by_hand(30_000, 2, id="mine", ttl_s=600)
    operator(cluster.ledger).run(Release("mine"))

    def act(ledger: Ledger, i: int) -> bool:
        if i >= submitters:
            try:
                operator(ledger, i).undo(1)
            except ActionRefused:
                return False
            return True
        need = Requirements(30_000, 2)
        made = ledger.submit(f"s{i}", f"s{i}", "w", need, kind=Kind.MANUAL, ttl_s=600)
        return made.allocation.state is State.RUNNING

    replies = race(redis_server, pool, submitters + 5, act)
    assert sum(replies) == 1
    (holder,) = [a for a in cluster.ledger.held() if a.node == "n2"]
    assert holder.cpu_cores == (0, 1)
    assert over_capacity(cluster.ledger.snapshot()) == []
    assert_right(cluster.ledger)
    assert cluster.ledger.entry(1).state == ("undone" if holder.allocation_id == "mine" else "done")


def _undo_and_redo(url: str, pool: str, process: int, start: Any, results: Any) -> None:
    with redis.Redis.from_url(url) as client:
        ledger = Ledger(client, pool)
        start.wait(60)
        for way in ("undo", "redo") * 10:
            try:
                effects = getattr(operator(ledger, process), way)(1)
                results.put((way, len(effects)))
            except ActionRefused:
                results.put((way, 0))


def test_processes_undo_and_redo_the_same(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    """An entry is undone as often as it was done again, and once more or not."""
    before = digest(cluster.ledger)
    operator(cluster.ledger).run(Cancel("w1"))
    after = digest(cluster.ledger)
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(3), spawn.Queue()
    args = (redis_server.socket_url, pool)
    processes = [spawn.Process(target=_undo_and_redo, args=(*args, i, start, results)) for i in range(3)]
    for process in processes:
        process.start()
    try:
        replies = [results.get(timeout=60) for _ in range(60)]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    done = Counter(way for way, count in replies if count)
    state = cluster.ledger.entry(1).state
    assert done["undo"] - done["redo"] == (1 if state == "undone" else 0)
    assert cluster.ledger.journal_page().seen == 1 + done["undo"] + done["redo"]
    assert digest(cluster.ledger) == (before if state == "undone" else after)
    assert_right(cluster.ledger)
