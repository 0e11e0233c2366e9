"""Whatever somebody does to what is counted, verify says so and repair puts it right from the allocations' records."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_allocator.ledger import keys
from celery_allocator.model import State
from tests.support.ledger_checks import broken
from tests.support.ledger_pool import LedgerPool

#: What is counted, and so can be counted again. Of a node only these fields: what it has is told by its workers.
COUNTED = (
    "tasks",
    "waiting",
    "line",
    "shapes",
    "delayed",
    "onhold",
    "aside",
    "expires",
    "held",
    "granted",
    "on",
    "index",
    "order",
    "classes",
)
NODE_FIELDS = ("map", "cfree", "rfree", "fleet", "mems")


def busy(client: redis.Redis) -> LedgerPool:
    """A pool with something in every state, on two nodes."""
    cluster = LedgerPool(client, f"test-{uuid.uuid4().hex[:12]}")
    cluster.node("n1", gpus=(10_000, 8_000), cores=12, slots=2)
    cluster.node("n2", gpus=(6_000,), cores=8, slots=2)
    for _ in range(2):
        cluster.running(2_000, 2, 500, repeatable=True)
        cluster.submit(3_000, 1, expires_at=cluster.at + 500)
        cluster.by_hand(1_000, 1, ttl_s=300)
    cluster.by_hand(100, 1, 100, id="both", gpu_count=2, ttl_s=250)
    for n in range(8):
        cluster.submit(5_000, 1, priority=n % 3)
    cluster.by_hand(9_500, 1, ttl_s=200)
    for _ in range(3):
        cluster.submit(0, 1, eta_at=cluster.at + 60, expires_at=cluster.at + 90)
    for n in range(2):
        cluster.ledger.hold(cluster.submit(5_000, 1, id=f"h{n}", expires_at=cluster.at + 80).allocation.allocation_id)
    cluster.ledger.hold(cluster.by_hand(9_500, 1, id="hand", ttl_s=100).allocation.allocation_id)
    cluster.ledger.set_breaker("bad", 0)
    aside = cluster.submit(0, 1, id="aside", task_name="bad").allocation
    assert aside.on_hold_by == "breaker"
    ended = cluster.submit(1, task_id="ended").allocation
    cluster.ledger.cancel(ended.allocation_id)
    unread = cluster.submit(1).allocation
    cluster.ledger.park(unread.allocation_id, "no JSON")
    return cluster


def everything(cluster: LedgerPool) -> list[tuple[Any, ...]]:
    """What a caller sees of every allocation."""
    ledger = cluster.ledger
    seen = [
        (a.allocation_id, a.state, a.token, a.node, a.device_ids, a.cpu_cores, a.queue_position)
        for a in (*ledger.held(), *ledger.queue(), *ledger.delayed(), *ledger.on_hold())
    ]
    return sorted(seen, key=lambda row: row[0])


def counted(cluster: LedgerPool) -> list[bytes]:
    """Every key of what is counted, and the nodes'."""
    prefix = keys.prefix(cluster.ledger.pool)
    heads = tuple(f"{prefix}{keys.KEYS[name][0]}".encode() for name in (*COUNTED, "node"))
    return sorted(k for k in cluster.ledger.client.scan_iter(f"{prefix}*", count=1000) if k.startswith(heads))


def _field(cluster: LedgerPool, key: bytes, pick: Callable[[list[bytes]], bytes]) -> bytes:
    fields = sorted(cluster.ledger.client.hkeys(key))
    if b":node:" in key:
        fields = [field for field in fields if field.decode() in NODE_FIELDS]
    return pick(fields)


def corrupt(cluster: LedgerPool, key: bytes, how: str, pick: Callable[[list[bytes]], bytes]) -> None:
    client: Any = cluster.ledger.client
    kind = client.type(key).decode()
    node = b":node:" in key
    if kind == "none" or (node and how != "alter"):
        return
    if how == "lose":
        client.delete(key)
    elif how == "add":
        {
            "zset": lambda: client.zadd(key, {"stranger": 7}),
            "set": lambda: client.sadd(key, "stranger"),
            "hash": lambda: client.hset(key, "stranger", "1"),
        }[kind]()
    elif kind == "zset":
        member = pick(sorted(client.zrange(key, 0, -1)))
        client.zincrby(key, 3, member) if how == "alter" else client.zrem(key, member)
    elif kind == "set":
        client.srem(key, pick(sorted(client.smembers(key))))
    elif how == "alter" and node:
        field = _field(cluster, key, pick)
        if field == b"map":
            client.hset(key, field, client.hget(key, field).translate(bytes.maketrans(b"01", b"10")))
        elif field not in (b"fleet", b"mems"):
            client.hincrby(key, field, 1)
    elif how == "alter":
        client.hset(key, _field(cluster, key, pick), "5")
    else:
        client.hdel(key, _field(cluster, key, pick))


@given(seed=st.integers(0, 2**32))
@example(seed=306)  # a stranger in the line of a shape that was not listed any more
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_repair_puts_right_what_is_counted(ledger_client: redis.Redis, seed: int) -> None:
    draw = random.Random(seed)
    cluster = busy(ledger_client)
    ledger = cluster.ledger
    assert ledger.verify() == []
    before, state = everything(cluster), ledger.snapshot()
    harm = []
    for _ in range(draw.randint(1, 4)):
        key, how = draw.choice(counted(cluster)), draw.choice(("lose", "add", "alter", "remove"))
        harm.append((key, how))
        corrupt(cluster, key, how, draw.choice)
    repaired = ledger.repair()
    assert repaired.left == (), harm
    assert everything(cluster) == before, harm
    assert ledger.snapshot() == state, harm
    assert broken(ledger.snapshot(), ledger.held()) == []
    assert [p.allocation_id for p in ledger.parked()] == ["a20"]
    ledger.client.delete(*ledger.client.keys(f"{keys.prefix(ledger.pool)}*"))


@pytest.mark.parametrize("how", ["lose", "add", "alter", "remove"])
def test_each_harm_to_each_key_is_told(ledger_client: redis.Redis, how: str) -> None:
    """But for times that nothing else says: of a grant, of its next delivery."""
    cluster = busy(ledger_client)
    silent = []
    for key in counted(cluster):
        dump = ledger_client.dump(key)
        corrupt(cluster, key, how, lambda of: of[0])
        changed = ledger_client.dump(key) != dump
        if changed and not cluster.ledger.verify():
            silent.append(key.decode().removeprefix(keys.prefix(cluster.ledger.pool)))
        ledger_client.restore(key, 0, dump, replace=True)
    if how == "alter":
        silent = [name for name in silent if name not in ("held", "granted", "expires", "delayed", "onhold")]
    assert silent == []


def test_of_two_that_hold_the_same_core_the_older_grant_stays(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    first, second = cluster.submit(1_000, 2).allocation, cluster.submit(1_000, 2).allocation
    record = keys.key(pool, "alloc", second.allocation_id)
    ledger_client.hset(record, "cores", "0,1")
    assert any("is held by" in line for line in cluster.ledger.verify())
    repaired = cluster.ledger.repair()
    assert repaired.left == ()
    assert [grant.allocation_id for grant in repaired.grants] == [second.allocation_id]
    assert cluster.ledger.get(first.allocation_id).cpu_cores == (0, 1)
    assert cluster.ledger.get(second.allocation_id).cpu_cores == (2, 3)


def test_two_that_run_on_the_same_core_are_told_and_not_hidden(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    cluster.running(1_000, 2)
    second = cluster.running(1_000, 2)
    ledger_client.hset(keys.key(pool, "alloc", second.allocation_id), "cores", "0,1")
    repaired = cluster.ledger.repair()
    assert any("runs on n1/gpu_0 beside others" in line for line in repaired.left)
    assert len(cluster.ledger.held()) == 2
    cluster.ledger.release(second.allocation_id)
    cluster.ledger.repair()
    assert cluster.ledger.verify() == []


def test_the_audit_of_a_tick_finds_what_is_wrong_with_a_node_in_its_turn(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    for node in ("n1", "n2", "n3"):
        cluster.node(node)
    cluster.running(1_000, 2)
    assert [cluster.ledger.audit() for _ in range(3)] == [[], [], []]
    ledger_client.hincrby(keys.key(pool, "node", "n2"), "rfree", -1)
    found = [cluster.ledger.audit() for _ in range(3)]
    assert sorted(map(len, found)) == [0, 0, 1]
    assert "n2 free RAM" in str(found)
    assert [fields["differences"] for _, fields in cluster.ledger.events() if fields["event"] == "audit"] == ["1"]


def test_a_record_that_nothing_names_is_found_and_put_back(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node(slots=None)
    waiting = cluster.submit(1_000).allocation
    for name in ("waiting", "shapes", "tasks"):
        ledger_client.delete(keys.key(pool, name))
    ledger_client.delete(keys.key(pool, "line", "1000:1:0:t"))
    assert any(waiting.allocation_id in line for line in cluster.ledger.verify())
    assert cluster.ledger.repair().left == ()
    assert [a.state for a in cluster.ledger.find(waiting.task_id)] == [State.WAITING]


@pytest.mark.parametrize("method", ["verify", "repair"])
def test_a_task_that_ends_while_records_are_counted_is_no_difference(
    ledger_client: redis.Redis, pool: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """SCAN and script are two steps, and a busy ledger moves on between them."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    ending, staying = cluster.running(1_000, 2), cluster.running(1_000, 2)
    scan = ledger_client.scan_iter

    def scan_while_one_ends(*args: Any, **options: Any) -> Iterator[bytes]:
        yield from scan(*args, **options)
        cluster.ledger.release(ending.allocation_id, ending.token)

    with monkeypatch.context() as patched:
        patched.setattr(ledger_client, "scan_iter", scan_while_one_ends)
        found: Any = getattr(cluster.ledger, method)()
    assert found == [] if method == "verify" else (found.found, found.left) == ((), ())
    assert [a.allocation_id for a in cluster.ledger.held()] == [staying.allocation_id]


def test_a_name_without_a_record_holds_nobody_up(ledger_client: redis.Redis, pool: str) -> None:
    """A script that stopped halfway at it would leave a slot taken."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    first = cluster.running(6_000, 1)
    behind = [cluster.submit(6_000, 1).allocation for _ in range(2)]
    ledger_client.zadd(keys.key(pool, "line", "6000:1:0:t"), {"stranger": -7})
    ledger_client.zadd(keys.key(pool, "shapes"), {"6000:1:0:t": -7, "nonsense": -9, "5000:1:0:t": -8})
    for holder, next_one in zip([first, behind[0]], behind, strict=True):
        live = cluster.ledger.get(holder.allocation_id)
        grants = cluster.ledger.release(live.allocation_id, live.token).grants
        assert [grant.allocation_id for grant in grants] == [next_one.allocation_id]
    cluster.ledger.repair()
    assert cluster.ledger.verify() == []


def test_a_record_that_is_not_whole_is_told_and_left_alone(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    held, waiting = cluster.running(1_000, 1), cluster.submit(9_500, 1).allocation
    for allocation in (held, waiting):
        ledger_client.hset(keys.key(pool, "alloc", allocation.allocation_id), "shape", "nonsense")
    for allocation in (held, waiting):
        assert any(allocation.allocation_id in line and "not whole" in line for line in cluster.ledger.verify())
        assert any(allocation.allocation_id in line and "left alone" in line for line in cluster.ledger.repair().left)
    assert ledger_client.exists(*(keys.key(pool, "alloc", a.allocation_id) for a in (held, waiting))) == 2
    ledger_client.delete(*(keys.key(pool, "alloc", a.allocation_id) for a in (held, waiting)))
    assert cluster.ledger.repair().left == ()


@pytest.mark.parametrize("lost", ["record", "lease", "both"])
def test_a_worker_without_its_record_or_lease_is_told_and_heard_or_dropped(
    ledger_client: redis.Redis, pool: str, lost: str
) -> None:
    """Else what it runs would be held for good: only what has a lease can lose it."""
    for alive in (True, False):
        cluster = LedgerPool(ledger_client, f"{pool}-{alive}")
        cluster.node()
        running = cluster.running(1_000, 1)
        if lost != "lease":
            ledger_client.delete(keys.key(cluster.ledger.pool, "worker", "w.n1.gpu_0"))
        if lost != "record":
            ledger_client.zrem(keys.key(cluster.ledger.pool, "workers"), "w.n1.gpu_0")
        assert any("w.n1.gpu_0" in line for line in cluster.ledger.verify())
        assert cluster.ledger.repair().left == ()
        if alive:
            assert cluster.ledger.heartbeat("w.n1.gpu_0", "one", 60)
        cluster.at += 70
        cluster.ledger.tick()
        cluster.ledger.tick()
        assert cluster.ledger.held() == ()
        assert running.allocation_id in {o.allocation_id for o in cluster.ledger.tick().obituaries}


def test_a_token_that_was_never_given_is_told_and_not_given_again(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    running = cluster.running(1_000, 1)
    ledger_client.hset(keys.key(pool, "meta"), "seq", 0)
    assert any("the last one given is 0" in line for line in cluster.ledger.verify())
    assert cluster.ledger.repair().left == ()
    assert cluster.submit(1_000, 1).allocation.token > running.token


@pytest.mark.parametrize(("state", "field"), [("waiting", "score"), ("delayed", "eta"), ("held", "tok")])
def test_a_field_that_is_missing_is_told_and_repair_does_not_stop_halfway(
    ledger_client: redis.Redis, pool: str, state: str, field: str
) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    bad = {
        "held": lambda: cluster.running(1_000, 1),
        "waiting": lambda: cluster.submit(9_500, 1),
        "delayed": lambda: cluster.submit(1_000, 1, eta_at=cluster.at + 60),
    }
    good = cluster.running(1_000, 1)
    made: Any = bad[state]()
    allocation_id = getattr(made, "allocation", made).allocation_id
    ledger_client.hdel(keys.key(pool, "alloc", allocation_id), field)
    if field == "tok":
        ledger_client.hset(keys.key(pool, "alloc", allocation_id), field, "nonsense")
    else:
        assert any(allocation_id in line for line in cluster.ledger.verify())
    assert any("left alone" in line for line in cluster.ledger.repair().left)
    assert cluster.submit(1_000, 1).allocation.state is State.GRANTED
    assert cluster.ledger.release(good.allocation_id, good.token).done


def test_what_cannot_be_read_of_a_node_stops_nothing_and_is_made_anew(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    for node in ("n1", "n2"):
        cluster.node(node)
    held = cluster.running(1_000, 2)
    ledger_client.hset(keys.key(pool, "node", held.node or ""), "fleet", b"\xff\xff nonsense")
    assert [bool(cluster.ledger.audit()) for _ in range(2)].count(True) == 1, "the other node is looked at all the same"
    assert any("is missing among the devices of its node" in line for line in cluster.ledger.verify())
    cluster.ledger.tick()
    assert cluster.ledger.repair().left == ()
    assert cluster.ledger.release(held.allocation_id, held.token).done


def test_damage_in_what_is_due_stops_no_tick(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    held = cluster.running(1_000, 1)
    waking = cluster.submit(1_000, 1, eta_at=cluster.at + 5).allocation
    for name in ("granted", "delayed", "expires", "manual"):
        ledger_client.zadd(keys.key(pool, name), {"stranger": 1})
    ledger_client.hset(keys.key(pool, "alloc", held.allocation_id), "shape", "nonsense")
    cluster.at += 61  # also its worker's lease is over
    cluster.ledger.heartbeat("w.n1.cpu", "one", 60)
    assert "w.n1.gpu_0" in cluster.ledger.tick().lost_workers
    assert cluster.ledger.get(waking.allocation_id).state is State.WAITING
