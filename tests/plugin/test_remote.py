"""Remote control in one process; with real workers in tests/acceptance/test_remote_control.py."""

from __future__ import annotations

import pytest
import redis
from celery import Celery

from celery_allocator import install
from celery_allocator.operations import Front, Hold, Unhold
from celery_allocator.plugin import remote
from celery_allocator.plugin.desk import Desk
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


def test_what_was_done_before_a_failure_is_told(
    ledger_client: redis.Redis, pool: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Desk.ask, "__defaults__", (30.0,))  # on a busy machine the usual half second may be over
    cluster = LedgerPool(ledger_client, pool)
    app = Celery("remote", broker="memory://", set_as_current=False)
    app.conf.update(allocator_backend_url=redis_server.url, allocator_pool=pool)
    cluster.node(gpus=(1_000,))
    cluster.running(1_000)
    cluster.submit(1_000)
    told = remote._act(install(app), lambda _: [Hold("a2"), Hold("a1")], {})
    assert "a1 is running" in told["error"]
    assert "Done before that: a2 is on hold (entry 1 of the journal)" in told["error"]
    assert remote._act(app, lambda _: [Unhold("a2")], {}) == {"ok": "a2 goes on (entry 2 of the journal)"}
    cluster.submit(1_000)
    assert remote._act(app, lambda _: [Front("a3")], {}) == {
        "ok": "a3 is number 1 in line; it was number 2 (entry 3 of the journal)"
    }
    app.close()
