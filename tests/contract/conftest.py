"""Fixtures of the ledger's contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_allocator.ledger import Options
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool

OPTIONS = Options(start_deadline_s=10, max_losses=2, ttl_s=100)


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> Iterator[LedgerPool]:
    """An empty pool; whatever a test did to it, the invariant holds at its end."""
    cluster = LedgerPool(ledger_client, pool, OPTIONS)
    yield cluster
    assert_right(cluster.ledger)
