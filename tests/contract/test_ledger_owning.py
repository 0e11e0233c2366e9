"""Whose allocations are whose, and how many at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from celery_allocator.errors import CapExceeded, LabelError
from celery_allocator.ledger import Ledger
from celery_allocator.model import Kind, NodeInventory, Requirements


@pytest.fixture
def now() -> list[float]:
    return [1_700_000_000.0]


@pytest.fixture
def ledger(ledger_client: redis.Redis, pool: str, now: list[float]) -> Ledger:
    made = Ledger(ledger_client, pool, clock=lambda: now[0])
    made.register_node(NodeInventory("host1", tuple(range(8)), 4096), lease_s=10**6)
    return made


def allocate(ledger: Ledger, owner: str, name: str, most: int | None = None, cores: int = 1) -> None:
    ledger.own(owner, name, most)
    ledger.submit(name, "task", "by hand", Requirements(cpu_cores=cores), kind=Kind.MANUAL, ttl_s=60)


def names(ledger: Ledger, owner: str) -> list[str]:
    return [allocation.allocation_id for allocation in ledger.owned(owner)]


def test_an_owner_has_what_lives_of_his(ledger: Ledger, now: list[float]) -> None:
    allocate(ledger, "ann", "a1")
    now[0] += 1
    allocate(ledger, "ann", "a2", cores=8)  # in line
    allocate(ledger, "bob", "b1")

    assert names(ledger, "ann") == ["a1", "a2"]
    assert ledger.owns("ann", "a2") and not ledger.owns("ann", "b1") and not ledger.owns("ann", "a9")

    ledger.release("a1")
    ledger.cancel("a2")
    assert names(ledger, "ann") == []
    assert not ledger.owns("ann", "a1")


def test_so_many_at_once_and_no_more(ledger: Ledger) -> None:
    allocate(ledger, "ann", "a1", most=2)
    allocate(ledger, "ann", "a2", most=2, cores=8)  # what is in line counts
    with pytest.raises(CapExceeded) as caught:
        ledger.own("ann", "a3", 2)
    assert (caught.value.cap, caught.value.asked, caught.value.most) == ("allocations", 3, 2)
    ledger.own("ann", "a2", 2)  # said again: no other one
    ledger.release("a1")
    allocate(ledger, "ann", "a3", most=2)


def test_an_end_by_ttl_makes_room(ledger: Ledger, now: list[float]) -> None:
    allocate(ledger, "ann", "a1", most=1)
    now[0] += 61
    ledger.tick()
    allocate(ledger, "ann", "a2", most=1)


def test_what_was_never_submitted_counts_for_a_minute(ledger: Ledger, now: list[float]) -> None:
    ledger.own("ann", "a1", 1)
    with pytest.raises(CapExceeded):
        ledger.own("ann", "a2", 1)
    now[0] += 61
    ledger.own("ann", "a2", 1)
    ledger.disown("ann", "a2")
    ledger.own("ann", "a3", 1)


def test_none_may_be_none(ledger: Ledger) -> None:
    with pytest.raises(CapExceeded):
        ledger.own("ann", "a1", 0)


def test_an_owner_has_a_name(ledger: Ledger) -> None:
    with pytest.raises(LabelError, match="owner"):
        ledger.own("", "a1")


def test_of_a_hundred_at_once_as_many_get_through_as_may(ledger: Ledger) -> None:
    start = threading.Barrier(20)

    def one(number: int) -> bool:
        start.wait(30)
        try:
            ledger.own("ann", f"a{number}", 7)
        except CapExceeded:
            return False
        return True

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(one, range(100))) == 7
