"""What the ledger says of run times, against what they were: any lengths, as :meth:`Ledger.runtimes` tells them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_allocator.ledger import Ledger, Options, keys
from celery_allocator.ledger.replies import Runtime
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

AGES = 1e12
#: Milliseconds are told in whole ones.
ROUNDED = 0.00051
_names = itertools.count()

#: Milliseconds, from the shortest to a month, and many that are alike.
lengths = st.one_of(
    st.integers(1, 2_600_000_000), st.integers(1, 60_000), st.sampled_from([1, 2, 1000, 1100, 1101, 60_000])
)


@pytest.fixture(scope="module")
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


def pool(client: redis.Redis, decay: float = 0.02) -> LedgerPool:
    cluster = LedgerPool(client, f"runtimes-{next(_names)}", Options(runtime_decay=decay))
    cluster.node(gpus=(), cores=1, slots=1, lease_s=AGES)
    return cluster


def known(ledger: Ledger, name: str = "work", size: str = "") -> Runtime:
    return next(r for r in ledger.runtimes() if (r.name, r.size) == (name, size))


def exact(values: list[int], q: float) -> float:
    """The smallest value at or below which a share ``q`` of all lies, in seconds."""
    return sorted(values)[max(0, math.ceil(round(q * len(values), 9)) - 1)] / 1000


@given(values=st.lists(lengths, min_size=1, max_size=45))
@example([1, 1, 2, 3, 4, 1])  # half of the weight, and not a billionth less
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_quantiles_are_within_five_percent_while_all_count_alike(client: redis.Redis, values: list[int]) -> None:
    """Up to as many runs as one over the decay, all do."""
    cluster = pool(client)
    for value in values:
        cluster.ran("work", value / 1000)
    found = known(cluster.ledger)
    assert found.runs == len(values)
    assert found.mean_s == pytest.approx(sum(values) / len(values) / 1000, rel=1e-6, abs=0.001)
    for told, q in ((found.p50_s, 0.5), (found.p90_s, 0.9)):
        assert abs(told - exact(values, q)) <= 0.05 * exact(values, q) + ROUNDED
    assert known(cluster.ledger, "*") == Runtime("*", "", found.runs, found.mean_s, found.p50_s, found.p90_s)


@given(old=lengths, new=lengths, count=st.integers(1, 120))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_newer_runs_count_more(client: redis.Redis, old: int, new: int, count: int) -> None:
    """Each takes a fiftieth of what all before it weigh: after n new ones, the old weigh 0.98^n."""
    cluster = pool(client)
    cluster.ran("work", *[old / 1000] * 50)
    cluster.ran("work", *[new / 1000] * count)
    weight = 0.98**count
    found = known(cluster.ledger)
    assert found.mean_s == pytest.approx((weight * old + (1 - weight) * new) / 1000, rel=1e-4, abs=0.001)
    low, high = min(old, new), max(old, new)
    of_low = weight if old <= new else 1 - weight
    for q, told in ((0.5, found.p50_s), (0.9, found.p90_s)):
        if abs(of_low - q) > 0.001:
            value = (low if of_low > q else high) / 1000
            assert abs(told - value) <= 0.05 * value + ROUNDED


def test_a_size_is_learned_apart_and_with_its_name(client: redis.Redis) -> None:
    cluster = pool(client)
    cluster.ran("train", 10, 10, 10, size="small")
    cluster.ran("train", 1000, size="large")
    told = {(r.name, r.size): (r.runs, round(r.mean_s)) for r in cluster.ledger.runtimes()}
    assert told == {
        ("train", "small"): (3, 10),
        ("train", "large"): (1, 1000),
        ("train", ""): (4, 258),
        ("*", ""): (4, 258),
    }
    assert cluster.ledger.learned() == {"train": 257.5, "*": 257.5}


@pytest.mark.parametrize("outcome", ["failure", "requeue", "cancelled", "lost"])
def test_successes_alone_are_learned(client: redis.Redis, outcome: str) -> None:
    cluster = pool(client)
    cluster.running()
    cluster.at += 10
    cluster.ledger.release("a1", None, outcome)
    assert cluster.ledger.runtimes() == ()


def test_a_clock_that_went_back_teaches_no_time_below_zero(client: redis.Redis) -> None:
    cluster = pool(client)
    cluster.ran("work", -1000)
    assert known(cluster.ledger).mean_s == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"mean", b"\x93\x01\x02", b"\xc0", b"\x94\x03\x05\xa1x\xa1y", b"\x94\x03\x05\xa1x\x01",
        b"\x94\x03\x05\x07\xc0",
        b"\x94\xcb\x7f\xf8\0\0\0\0\0\0\x05\x07\x01", b"\x80", b"\x92\x03\xff\x00",
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be_read_is_learned_anew(client: redis.Redis, damage: bytes) -> None:
    cluster = pool(client)
    for field in ("work", "*"):
        client.hset(keys.key(cluster.ledger.pool, "runtimes"), field, damage)
    assert cluster.ledger.runtimes() == ()
    cluster.submit(0, 1, id="holder")  # whatever asks for them goes on
    cluster.submit(0, 1, id="waits")
    cluster.submit(0, 1, task_name="other", id="waits-too")
    cluster.ends("holder", "failure")
    cluster.ends("waits", "failure")
    cluster.ends("waits-too", "failure")
    cluster.ran("work", 10)
    assert known(cluster.ledger).runs == 1


def test_what_was_learned_elsewhere_counts_as_a_few_runs(client: redis.Redis) -> None:
    cluster = pool(client)
    cluster.ran("known", 5)
    assert cluster.ledger.learn({"work": 100.0, "known": 7.0, "*": 3.0}) == ("work",)
    found = known(cluster.ledger)
    assert found.mean_s == 100
    assert found.p90_s == pytest.approx(100, rel=0.05)
    assert known(cluster.ledger, "known").mean_s == 5
    assert set(cluster.ledger.learn({"known": 7.0}, overwrite=True)) == {"known"}
    assert known(cluster.ledger, "known").mean_s == 7
    for _ in range(3):
        cluster.ran("work", 200)
    assert known(cluster.ledger).mean_s == pytest.approx(150)  # three runs and three
