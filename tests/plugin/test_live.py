"""Live updates as a worker's duty: through an outage of the server, and handed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from celery_allocator import install
from celery_allocator.ledger import Ledger, connect, keys
from celery_allocator.plugin.duties import duties
from celery_allocator.plugin.duty import Duty
from celery_allocator.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill."""
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


@pytest.fixture
def made(server: RedisServer, pool: str) -> Iterator[list[Duty]]:
    app = Celery("live", broker=server.url, set_as_current=False)
    app.conf.update(allocator_backend_url=server.url, allocator_pool=pool, allocator_changes=True)
    found = duties(install(app), "w@host")
    assert [duty.name for duty in found] == ["updates", "changes"]
    yield found
    for duty in found:
        duty.stop()
    app.close()


@pytest.fixture
def ledger(server: RedisServer, pool: str) -> Iterator[Ledger]:
    ledger = connect(Settings(backend_url=server.url, pool=pool))
    with ledger.client:
        yield ledger


def update(key: str, *, paused: bool) -> bytes:
    said = {"object": "setting", "id": "granting", "op": "update", "fields": {"paused": paused}, "actor": "brain"}
    return json.dumps({**said, "idempotency_key": key}).encode()


def test_settings_say_what_a_worker_takes_part_in(server: RedisServer, pool: str) -> None:
    app = Celery("live", broker=server.url, set_as_current=False)
    app.conf.update(allocator_backend_url=server.url, allocator_pool=pool, allocator_updates=False)
    assert duties(install(app), "w@host") == []


def test_both_ways_work_again_after_an_outage(server: RedisServer, made: list[Duty], ledger: Ledger, pool: str) -> None:
    for duty in made:
        duty.start()
    channel = keys.key(pool, "updates")

    def keys_answered() -> list[str]:
        return [reply["idempotency_key"] for _, reply in ledger.replies()]

    with redis.Redis.from_url(server.url) as brain:
        wait_until(lambda: brain.publish(channel, update("k1", paused=True)), 30, "somebody to listen")
        wait_until(lambda: keys_answered() == ["k1"], 30, "an answer")
        server.restart()
        brain.xadd(channel, {"update": update("k2", paused=False)})
        wait_until(lambda: "k2" in keys_answered(), 30, "an answer after the outage")
        wait_until(lambda: brain.publish(channel, update("k3", paused=True)), 30, "somebody to listen again")
        wait_until(lambda: "k3" in keys_answered(), 30, "an answer to what was published after the outage")
        wait_until(lambda: b'"paused": true' in (last(brain, pool) or b""), 30, "the change to be relayed")
    for duty in made:
        duty.stop()
    assert ledger.take_duty("updates", "another", 1) and ledger.take_duty("changes", "another", 1)


def last(brain: redis.Redis, pool: str) -> bytes:
    """The last change but for what tells who did it."""
    rows = [fields[b"change"] for _, fields in brain.xrevrange(keys.key(pool, "changes"), count=3)]
    return next((row for row in rows if b'"operated"' not in row), b"")
