"""The recorder as a thread of a worker (setting ``allocator_recorder``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from celery_allocator.history import History, open_history
from celery_allocator.ledger import Ledger, keys
from celery_allocator.settings import Settings
from tests.history.made import folded, in_stream, recorded, stored
from tests.security.environment import environment, produce
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet, WorkerProcess

#: Four workers after each other, each of which may be waited for.
pytestmark = pytest.mark.timeout(300)

Env = Callable[[str], dict[str, str]]


@pytest.fixture
def env(redis_server: RedisServer, pool: str) -> Env:
    """The environment of workers that record in a database."""
    url = redis_server.url

    def made(database_url: str) -> dict[str, str]:
        ours = environment(pool, broker=url, backend=url, ledger=url)
        return {
            **ours,
            "ALLOCATOR_DEVICES": "sim:2x8192",
            "ALLOCATOR_RECORDER": "true",
            "ALLOCATOR_LEASE_S": "3",
            "ALLOCATOR_HISTORY_BACKEND_URL": database_url,
        }

    return made


@pytest.fixture
def history(database_url: str, pool: str) -> Iterator[History]:
    with open_history(Settings(history_backend_url=database_url, pool=pool)) as opened:
        yield opened


def start(workers: WorkerFleet, env: dict[str, str], gpu: str) -> WorkerProcess:
    return workers.start("tests.support.allocator_app", "--gpu", gpu, "--concurrency", "1", env=env)


def test_workers_record_by_turns(
    env: Env, database_url: str, history: History, workers: WorkerFleet, ledger_client: redis.Redis, pool: str
) -> None:
    """Two have it on: one records; when it is killed, the other does; none of it twice."""
    stream = keys.key(pool, "events")

    def caught_up() -> bool:
        if history.schema.current() is None:
            return False
        cursor = history.cursor()
        (last,) = ledger_client.xrevrange(stream, count=1)
        return cursor is not None and cursor.last_event_id == last[0].decode()

    def recording() -> int:
        cursor = history.cursor()
        assert cursor is not None
        return int(cursor.recorder.rpartition(":")[2])

    fleet = [start(workers, env(database_url), gpu) for gpu in ("0", "1")]
    produce(env(database_url), workers)
    wait_until(caught_up, 30, workers.output)
    (first,) = [worker for worker in fleet if worker.pid == recording()]
    first.kill()
    (second,) = [worker for worker in fleet if worker is not first]
    Ledger(ledger_client, pool).cordon("host1/cpu")  # something to record
    wait_until(lambda: caught_up() and recording() == second.pid, 30, workers.output)
    assert second.stop() == 0
    assert "Traceback" not in second.output()
    # What a worker says when it leaves is recorded by the next one.
    last = start(workers, env(database_url), "none")
    wait_until(lambda: caught_up() and recording() == last.pid, 30, workers.output)
    assert last.stop() == 0

    entries = in_stream(ledger_client, pool)
    found = recorded(history)
    assert found == entries[: len(found)]
    assert stored(history) == folded(found)
    assert history.gaps() == []


def test_a_history_that_cannot_be_used_stops_no_worker(env: Env, workers: WorkerFleet) -> None:
    worker = start(workers, env("mysql://nowhere/db"), "0")
    worker.wait_for_output("the history is not recorded from here")
    produce(env(""), workers)
    assert worker.stop() == 0
