"""What the ledger says of what tasks use, against what they used: any amounts, told by :meth:`Ledger.recommend`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_allocator.ledger import Usage
from celery_allocator.model import Peaks
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

AGES = 1e12
_names = itertools.count()

#: MB: from nothing to more than any machine has, and many that are alike.
amounts = st.one_of(st.integers(1, 60_000_000), st.integers(1, 80_000), st.sampled_from([1, 2, 1000, 1101, 40_960]))


@pytest.fixture(scope="module")
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


def pool(client: redis.Redis) -> LedgerPool:
    cluster = LedgerPool(client, f"peaks-{next(_names)}")
    cluster.node(gpus=(), cores=1, slots=1, lease_s=AGES)
    return cluster


def exact(values: list[int], q: float) -> int:
    """The smallest value at or below which a share ``q`` of all lies."""
    return sorted(values)[max(0, math.ceil(round(q * len(values), 9)) - 1)]


def ram(cluster: LedgerPool) -> Usage:
    (known,) = cluster.ledger.recommend("work")
    assert known.ram_mb is not None
    return known.ram_mb


@given(values=st.lists(amounts, min_size=1, max_size=120))
@example([5] * 99 + [60_000])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_quantiles_are_within_five_percent_and_the_most_is_exact(client: redis.Redis, values: list[int]) -> None:
    """As long as all runs count alike: up to two hundred do."""
    cluster = pool(client)
    for value in values:
        cluster.used("work", Peaks(ram_mb=value))
    found = ram(cluster)
    assert (found.runs, found.most) == (len(values), max(values))
    for told, q in ((found.p50, 0.5), (found.p99, 0.99)):
        assert abs(told - exact(values, q)) <= 0.05 * exact(values, q) + 0.51  # told in whole MB
    if len(values) >= 3:
        assert found.suggested is not None
        assert 1.15 * max(values) <= found.suggested < 1.15 * max(values) + 256


def test_newer_runs_count_more_and_an_outlier_is_forgotten(client: redis.Redis) -> None:
    """The most is of the last five hundred to a thousand runs."""
    cluster = pool(client)
    cluster.used("work", Peaks(ram_mb=9000), *[Peaks(ram_mb=100)] * 499)
    assert ram(cluster).most == 9000
    cluster.used("work", *[Peaks(ram_mb=100)] * 500)
    assert ram(cluster).most == 9000
    cluster.used("work", Peaks(ram_mb=100))
    found = ram(cluster)
    assert (found.most, found.runs) == (100, 1001)
    assert found.p99 == 100
    cluster.used("work", *[Peaks(ram_mb=5000)] * 200)
    assert ram(cluster).p50 == pytest.approx(5000, rel=0.05)  # 0.995 ** 200 of the weight is left to the old
