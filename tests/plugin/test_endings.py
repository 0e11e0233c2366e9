"""Tasks that have ended, until the ledger knows."""

from __future__ import annotations

import redis

from celery_allocator.model import Allocation
from celery_allocator.plugin.endings import Ending, Endings
from tests.support.ledger_pool import LedgerPool


def test_between_two_releases_there_is_time_for_the_lease(ledger_client: redis.Redis, pool: str) -> None:
    """On a slow server many releases take longer than a lease."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    settled, happened = list[Allocation](), list[str]()
    endings = Endings(settled.append)
    runs = [cluster.running(1_000, 1) for _ in range(3)]
    for run in runs:
        endings.add(Ending(run, "success"))
        assert run in endings
    assert not endings.settle(
        cluster.ledger, lambda grants: happened.append("release"), lambda: happened.append("between")
    )
    assert happened == ["between", "release"] * 3
    assert settled == runs
    assert cluster.ledger.held() == ()


def test_what_is_being_settled_still_counts_as_ended(ledger_client: redis.Redis, pool: str) -> None:
    """Another thread asks meanwhile whether a task has ended, or was dropped."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    run = cluster.running(1_000, 1)
    endings = Endings(lambda allocation: None)
    endings.add(Ending(run, "success"))
    seen = list[bool]()
    endings.settle(cluster.ledger, lambda grants: None, lambda: seen.append(run in endings))
    assert seen == [True]
    assert run not in endings
