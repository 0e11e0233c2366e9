"""A pool on the session's server, as people at a terminal reach it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_allocator.ledger import Ledger, Options
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


class LivePool(LedgerPool):
    """The same on the server's own clock: processes look at it too."""

    def __init__(self, client: redis.Redis, pool: str) -> None:
        super().__init__(client, pool)
        self.ledger = Ledger(client, pool, options=Options(ttl_s=1000))


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> Iterator[LivePool]:
    """An empty pool; whatever a test did to it, the invariant holds at its end."""
    cluster = LivePool(ledger_client, pool)
    yield cluster
    assert_right(cluster.ledger)


@pytest.fixture
def reach(redis_server: RedisServer, pool: str) -> dict[str, str]:
    """The environment by which a command reaches the pool."""
    return {"ALLOCATOR_BACKEND_URL": redis_server.url, "ALLOCATOR_POOL": pool}
