"""Records of the ledger that somebody else has written to: our error that names the record, never another one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.errors import AllocatorError, LedgerError
from celery_allocator.ledger import Ledger, keys
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements
from tests.fuzz.material import FUZZ

NODE = NodeInventory("host1", (0, 1), 1024, (DeviceInventory("gpu_0", 0, "GPU-0", "Test", 8192),))
NEED = Requirements(gpu_memory_mb=8192, cpu_cores=1)
garbage = st.sampled_from([b"", b"x", b"-1", b"nan", b"9" * 400, b"\xff", b"a:b:c:d", b"1:2"]) | st.binary(max_size=9)
_numbers = itertools.count()


def pool_of(client: redis.Redis, pool: str) -> Ledger:
    """A host with a worker; "a1" is granted there and "a2" waits."""
    ledger = Ledger(client, f"{pool}-{next(_numbers)}")
    ledger.register_node(NODE, 600)
    ledger.register_worker("w", "life", "host1", "gpu_0", slots=2, queue="q", lease_s=600)
    ledger.submit("a1", "t1", "work", NEED, message=b"m")
    ledger.submit("a2", "t2", "work", NEED, message=b"m")
    return ledger


#: Reading, then changing, in an order in which each still has something to do.
USES: list[Callable[[Ledger], Any]] = [
    lambda ledger: ledger.get("a1"),
    lambda ledger: ledger.find("t2"),
    lambda ledger: (ledger.queue(), ledger.held(), ledger.delayed()),
    lambda ledger: (ledger.snapshot(), ledger.node("host1"), ledger.room()),
    lambda ledger: ledger.verify(),
    lambda ledger: ledger.submit("a3", "t3", "work", NEED),
    lambda ledger: ledger.start("a1", 1, "w", "life", "n", repeatable=True),
    lambda ledger: ledger.renew("a1", 5),
    lambda ledger: ledger.tick(),
    lambda ledger: ledger.cancel("a2"),
    lambda ledger: ledger.release("a1"),
    lambda ledger: ledger.cordon("host1"),
    lambda ledger: ledger.heartbeat("w", "life", 5),
    lambda ledger: ledger.unregister_worker("w", "life"),
]


@FUZZ
@given(st.sampled_from(["a1", "a2"]), st.data(), garbage)
def test_a_damaged_field(ledger_client: redis.Redis, pool: str, which: str, data: st.DataObject, value: bytes) -> None:
    """Of an allocation, the node, the device, the worker or the counters."""
    ledger = pool_of(ledger_client, pool)
    records = [
        ("alloc", which),
        ("node", "host1"),
        ("dev", "host1/gpu_0"),
        ("worker", "w"),
        ("meta", ""),
        ("tasks", ""),
    ]
    key = keys.key(ledger.pool, *data.draw(st.sampled_from(records)))
    field = data.draw(st.sampled_from(sorted(ledger_client.hkeys(key))))
    if value:
        ledger_client.hset(key, field, value)
    else:
        ledger_client.hdel(key, field)
    for use in USES:
        with contextlib.suppress(AllocatorError):
            use(ledger)


@FUZZ
@given(st.data(), st.sampled_from(["string", "list", "gone"]))
def test_a_key_of_another_type_or_gone(ledger_client: redis.Redis, pool: str, data: st.DataObject, as_: str) -> None:
    ledger = pool_of(ledger_client, pool)
    found = sorted(ledger_client.scan_iter(f"{keys.prefix(ledger.pool)}*", count=1000))
    key = data.draw(st.sampled_from(found))
    ledger_client.delete(key)
    if as_ == "string":
        ledger_client.set(key, b"garbage")
    elif as_ == "list":
        ledger_client.rpush(key, b"garbage")
    for use in USES:
        with contextlib.suppress(AllocatorError):
            use(ledger)


@pytest.mark.parametrize("field", ["state", "shape", "strat", "tok", "c_ms", "prio", "name", "cores"])
def test_the_error_names_the_record(ledger_client: redis.Redis, pool: str, field: str) -> None:
    ledger = pool_of(ledger_client, pool)
    ledger_client.hset(keys.key(ledger.pool, "alloc", "a1"), field, b"\xff")
    with pytest.raises(LedgerError, match=r"allocation a1 in the ledger is damaged.*verify"):
        ledger.get("a1")
