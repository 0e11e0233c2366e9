"""Many at once for the same thing: exactly as many winners as there are things."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import redis

from celery_allocator.errors import StaleTokenError
from celery_allocator.ledger import Ledger
from celery_allocator.model import Requirements, State
from tests.support.ledger_checks import assert_empty, assert_right, over_capacity
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

T = TypeVar("T")


def race(server: RedisServer, pool: str, runners: int, run: Callable[[Ledger, int], T]) -> list[T]:
    """``run(ledger, i)`` in so many threads, each with a connection of its own, all let go at the same moment."""
    start = threading.Barrier(runners)
    results: list[T] = []
    errors: list[BaseException] = []

    def runner(i: int) -> None:
        try:
            with server.client() as client:
                ledger = Ledger(client, pool)
                client.ping()
                start.wait(30)
                results.append(run(ledger, i))
        except BaseException as error:  # noqa: BLE001  # told by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=runner, args=(i,)) for i in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(results) == runners
    return results


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    """A pool on the server's own clock, which all racers share."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.ledger = Ledger(ledger_client, pool)
    return cluster


@pytest.mark.parametrize(
    ("what", "winners"),
    [
        ({"slots": 17}, 17),
        ({"gpus": (23_000,), "slots": 100}, 23),
        ({"cores": 31, "slots": 100}, 31),
        ({"ram": 42_000, "slots": 100}, 42),
    ],
)
def test_a_hundred_threads_race_for_room(
    cluster: LedgerPool, redis_server: RedisServer, pool: str, what: dict[str, Any], winners: int
) -> None:
    """Exactly as many grants as the scarcest thing allows, whichever it is."""
    cluster.node(**{"gpus": (1_000_000,), "cores": 128, "ram": 1_000_000, **what}, lease_s=600)
    request = Requirements(1_000, 1, 1_000)
    states = race(
        redis_server, pool, 100, lambda ledger, i: ledger.submit(f"a{i}", f"t{i}", "w", request).allocation.state
    )
    assert Counter(states) == {State.GRANTED: winners, State.WAITING: 100 - winners}
    held = cluster.ledger.held()
    assert len(held) == winners
    assert len({a.token for a in held}) == winners
    assert_right(cluster.ledger)
    assert over_capacity(cluster.ledger.snapshot()) == []

    # And back: everyone ends at once, again and again, until all hundred had their turn.
    finished: set[str] = set()
    while held := cluster.ledger.held():
        claims = list(held)
        done = race(redis_server, pool, len(claims), lambda ledger, i: ledger.release(claims[i].allocation_id).done)  # noqa: B023
        assert all(done)
        assert not finished & {a.allocation_id for a in claims}
        finished |= {a.allocation_id for a in claims}
        assert_right(cluster.ledger)
    assert finished == {f"a{i}" for i in range(100)}
    assert_empty(cluster.ledger)


def test_fifty_deliveries_of_one_grant_race_to_start(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    cluster.node(lease_s=600)
    granted = cluster.submit(1_000).allocation

    def start(ledger: Ledger, i: int) -> bool:
        try:
            ledger.start(granted.allocation_id, granted.token, "w.n1.gpu_0", "one", f"delivery {i}", False)
        except StaleTokenError:
            return False
        return True

    assert Counter(race(redis_server, pool, 50, start)) == {True: 1, False: 49}


@pytest.mark.parametrize("fenced", [True, False])
def test_fifty_release_the_same(cluster: LedgerPool, redis_server: RedisServer, pool: str, fenced: bool) -> None:
    cluster.node(gpus=(1_000,), lease_s=600)
    running = cluster.running(1_000)
    for _ in range(3):
        cluster.submit(1_000)
    token = running.token if fenced else None
    replies = race(redis_server, pool, 50, lambda ledger, _: ledger.release(running.allocation_id, token))
    assert Counter(reply.done for reply in replies) == {True: 1, False: 49}
    assert [g.allocation_id for reply in replies for g in reply.grants] == ["a2"]
    assert len(cluster.ledger.queue()) == 2


def test_fifty_submit_the_same(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    cluster.node(lease_s=600)
    request = Requirements(1_000)
    replies = race(redis_server, pool, 50, lambda ledger, _: ledger.submit("same", "same", "w", request))
    assert Counter(reply.known for reply in replies) == {False: 1, True: 49}
    assert {reply.allocation.token for reply in replies} == {cluster.ledger.get("same").token}
    assert cluster.device("n1/gpu_0").memory_free_mb == 9_000


def test_release_races_cancel_and_start(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    """Thirty grants, each started, released and cancelled at the same moment: each ends once, whoever wins."""
    cluster.node(gpus=(30_000,), cores=30, slots=30, lease_s=600)
    granted = [cluster.submit(1_000).allocation for _ in range(30)]

    def end(ledger: Ledger, i: int) -> int:
        claim = granted[i % 30]
        if i < 30:
            try:
                ledger.start(claim.allocation_id, claim.token, "w.n1.gpu_0", "one", "delivery", False)
            except StaleTokenError:
                return 0
            return int(ledger.release(claim.allocation_id, claim.token, "success").done)
        return int(ledger.cancel(claim.allocation_id).done)

    assert sum(race(redis_server, pool, 60, end)) == 30
    cluster.ledger.settle(o.allocation_id for o in cluster.ledger.tick().obituaries)
    assert_empty(cluster.ledger)


def _submit_and_hold(url: str, pool: str, process: int, count: int, start: Any, results: Any) -> None:
    with redis.Redis.from_url(url) as client:
        ledger = Ledger(client, pool)
        start.wait(60)
        for i in range(count):
            name = f"p{process}.{i}"
            allocation = ledger.submit(name, name, "w", Requirements(1_000)).allocation
            results.put((name, allocation.state.value, allocation.token))


def test_processes_race_for_room(cluster: LedgerPool, redis_server: RedisServer, pool: str) -> None:
    cluster.node(gpus=(19_000,), cores=64, slots=64, lease_s=600)
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(4), spawn.Queue()
    args = (redis_server.socket_url, pool)
    processes = [spawn.Process(target=_submit_and_hold, args=(*args, i, 15, start, results)) for i in range(4)]
    for process in processes:
        process.start()
    try:
        replies = [results.get(timeout=60) for _ in range(60)]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    granted = [reply for reply in replies if reply[1] == "granted"]
    assert len(granted) == 19
    assert len({token for _, _, token in granted}) == 19
    assert len(cluster.ledger.queue()) == 41
    assert_right(cluster.ledger)
