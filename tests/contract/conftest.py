"""Fixtures of the ledger's contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from celery_allocator.allocating import Session
from celery_allocator.ledger import Options
from tests.support import by_hand
from tests.support.command_line import Run, runner
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

OPTIONS = Options(start_deadline_s=10, max_losses=2, ttl_s=100)


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> Iterator[LedgerPool]:
    """An empty pool; whatever a test did to it, the invariant holds at its end."""
    cluster = LedgerPool(ledger_client, pool, OPTIONS)
    yield cluster
    assert_right(cluster.ledger)


@pytest.fixture
def pools(ledger_client: redis.Redis, pool: str) -> Iterator[Callable[..., LedgerPool]]:
    """Makes empty pools with the given options (see :class:`Options`); the invariant holds in each at the end."""
    made: list[LedgerPool] = []

    def make(**options: Any) -> LedgerPool:
        made.append(LedgerPool(ledger_client, f"{pool}-{len(made)}", replace(OPTIONS, **options)))
        return made[-1]

    yield make
    for cluster in made:
        assert_right(cluster.ledger)


@pytest.fixture
def session(redis_server: RedisServer, pool: str) -> Session:
    """The same ledger as the commands use; with its host registered."""
    made = by_hand.session(redis_server, pool)
    made.offer_host(600)
    return made


@pytest.fixture
def run(redis_server: RedisServer, pool: str, session: Session) -> Run:
    """Run a command of ``celery-allocator``."""
    return runner(redis_server, pool)
