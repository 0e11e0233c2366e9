"""A pool takes so many waiting tasks and no more, and what is refused leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_allocator.errors import PoolFullError
from celery_allocator.ledger import Options, keys
from celery_allocator.model import State
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool


@pytest.fixture
def small(ledger_client: redis.Redis, pool: str) -> Iterator[LedgerPool]:
    """Two may wait."""
    cluster = LedgerPool(ledger_client, pool, Options(max_waiting=2))
    cluster.node(slots=1)
    cluster.submit(6_000)
    yield cluster
    assert_right(cluster.ledger)


def everything(cluster: LedgerPool) -> dict[bytes, bytes | None]:
    client = cluster.ledger.client
    return {key: client.dump(key) for key in client.scan_iter(f"{keys.prefix(cluster.ledger.pool)}*", count=1000)}


def test_the_one_too_many_is_refused_and_changes_nothing(small: LedgerPool) -> None:
    small.submit(6_000)
    small.submit(1, eta_at=small.at + 5)
    before = everything(small)
    for options in ({}, {"eta_at": small.at + 5}):
        with pytest.raises(PoolFullError, match=r"2 tasks wait.*allocator_max_waiting") as caught:
            small.submit(6_000, **options)
        assert (caught.value.waiting, caught.value.bound) == (2, 2)
    assert everything(small) == before


def test_what_fits_is_granted_however_many_wait(small: LedgerPool) -> None:
    small.submit(6_000)
    small.submit(6_000)
    assert small.submit(0).allocation.state is State.GRANTED


def test_a_retry_stands_in_for_what_it_replaces(small: LedgerPool) -> None:
    small.submit(6_000)
    small.submit(6_000)
    assert small.submit(6_000, task_id="task of a1").allocation.state is State.WAITING
    assert small.submit(6_000, id="a2").known, "a repeated call is no new task"
