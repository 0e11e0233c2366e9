"""The ledger and its server: events, forgotten scripts, two pools on one server, how durable it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from celery_allocator.errors import LedgerUnavailable
from celery_allocator.ledger import Ledger
from celery_allocator.ledger.connection import durability_warnings
from celery_allocator.model import State
from tests.support.ledger_checks import assert_empty
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


@pytest.fixture
def another_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of this test alone, to be reconfigured, flushed of its scripts or stopped."""
    server = RedisServer(tmp_path / "another").start()
    yield server
    server.kill()


# --- events


def overuse(cluster: LedgerPool) -> None:
    run = cluster.ledger.get("a3")
    said = {"promised_mb": 64, "used_mb": 99, "action": "warn"}
    assert cluster.ledger.note_overuse(run, "ram_mb", **said)
    assert not cluster.ledger.note_overuse(replace(run, token=run.token + 1), "ram_mb", **said)


STEPS: list[tuple[Callable[[LedgerPool], object], list[str]]] = [
    (lambda c: c.node(slots=None), ["node"]),
    (lambda c: c.worker("n1", "gpu_0"), ["worker"]),
    (lambda c: c.submit(8_000), ["granted"]),  # a1
    (lambda c: c.start(c.ledger.get("a1")), ["started"]),
    (lambda c: c.submit(8_000), ["waiting"]),  # a2
    (lambda c: c.submit(1_000, eta_at=c.at + 5), ["delayed"]),  # a3
    (lambda c: c.ledger.release("a1", outcome="success"), ["released", "granted"]),
    (lambda c: c.ledger.release("a1"), []),
    (lambda c: c.ledger.release("a2", outcome="requeue"), ["requeued", "granted"]),
    (lambda c: c.ledger.cordon("n1", drain=True), ["withdrawn", "draining"]),
    (lambda c: c.ledger.uncordon("n1"), ["uncordoned", "granted"]),
    (lambda c: c.ledger.cancel("a2"), ["cancelled"]),
    (lambda c: c.ledger.cancel("a2"), []),
    (lambda c: c.ledger.settle(["a2"]), ["settled"]),
    (lambda c: c.ledger.settle(["a2"]), []),
    (lambda c: c.by_hand(1_000, ttl_s=5), ["granted"]),  # a4
    (lambda c: c.ledger.renew("a4", 5), ["renewed"]),
    (lambda c: setattr(c, "at", c.at + 5), []),
    (lambda c: c.ledger.tick(), ["released", "waiting", "granted"]),  # a4's TTL, a3's ETA
    (lambda c: setattr(c, "at", c.at + 10), []),
    (lambda c: c.ledger.tick(), ["republished"]),
    (lambda c: c.ledger.close_worker("w.n1.gpu_0", "one"), ["withdrawn", "closing"]),
    (lambda c: c.ledger.unregister_worker("w.n1.gpu_0", "one"), ["left"]),
    (lambda c: c.submit(1_000, expires_at=c.at + 1), ["waiting"]),  # a5
    (lambda c: setattr(c, "at", c.at + 60), []),
    (lambda c: c.ledger.tick(), ["node_lost", "expired"]),
    (lambda c: (c.node(slots=None), c.worker("n1", "gpu_0", lease_s=1)), ["node", "worker", "granted"]),
    (lambda c: c.start(c.ledger.get("a3"), repeatable=True), ["started"]),
    (lambda c: setattr(c, "at", c.at + 1), []),
    (overuse, ["overuse"]),
    (lambda c: c.ledger.tick(), ["lost", "worker_lost"]),
]


def test_every_change_leaves_one_event(cluster: LedgerPool) -> None:
    last = "-"
    for step, expected in STEPS:
        step(cluster)
        new = cluster.ledger.events(last)
        told = inspect.getsource(step).strip()
        assert [fields["event"] for _, fields in new] == expected, told
        assert all(int(fields["at"]) == int(cluster.at * 1000) for _, fields in new), told
        last = new[-1][0] if new else last


def test_an_event_names_what_it_is_about(cluster: LedgerPool) -> None:
    cluster.node()
    running = cluster.running(2_000, 2, task_name="proj.infer")
    cluster.at += 1.5
    cluster.ledger.release("a1", running.token, "success")
    events = {fields["event"]: fields for _, fields in cluster.ledger.events()}
    common = {"id": "a1", "task": "task of a1", "name": "proj.infer", "device": "n1/gpu_0", "token": str(running.token)}
    assert common.items() <= events["granted"].items()
    assert (events["granted"]["cores"], events["granted"]["shape"]) == ("0,1", "2000:2:0:t")
    assert {**common, "worker": "w.n1.gpu_0"}.items() <= events["started"].items()
    assert {**common, "outcome": "success", "held_ms": "1500"}.items() <= events["released"].items()
    assert "error" not in events["released"]
    failed = cluster.running(1_000, 1)
    cluster.ledger.release(failed.allocation_id, failed.token, "failure", error="ValueError")
    assert cluster.ledger.events()[-1][1]["error"] == "ValueError"


def test_the_stream_is_capped(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    cluster.ledger._common = (10, *cluster.ledger._common[1:])
    cluster.node()
    for _ in range(200):
        cluster.ledger.release(cluster.submit(1_000).allocation.allocation_id)
    assert len(cluster.ledger.events(count=1000)) < 250  # trimmed by whole blocks, of 100 entries


# --- the server


def test_a_server_that_forgot_the_scripts_is_told_them_again(another_server: RedisServer) -> None:
    with another_server.client() as client:
        cluster = LedgerPool(client, "p")
        cluster.node()
        for _ in range(3):
            client.script_flush()
            running = cluster.running(1_000)
            client.script_flush()
            assert cluster.ledger.release(running.allocation_id, running.token).done
        assert_empty(cluster.ledger)


def test_a_restarted_server_remembers_what_was_acknowledged(another_server: RedisServer) -> None:
    with another_server.client() as client:
        cluster = LedgerPool(client, "p")
        cluster.node(gpus=(8_000,))
        token = cluster.running(8_000).token
        cluster.submit(8_000)
        another_server.restart()
        assert cluster.ledger.verify() == []
        assert [g.allocation_id for g in cluster.ledger.release("a1", token).grants] == ["a2"]


def test_two_pools_on_one_server_do_not_mix(ledger_client: redis.Redis, pool: str) -> None:
    one, two = LedgerPool(ledger_client, pool), LedgerPool(ledger_client, f"{pool}-other")
    one.node()
    assert one.submit(2_000, id="same").allocation.state is State.GRANTED
    assert two.submit(9_000, id="same").allocation.state is State.WAITING
    assert two.ledger.snapshot().nodes == ()
    assert two.ledger.tick(lock_s=60).ran
    assert one.ledger.tick(lock_s=60).ran
    assert two.ledger.cancel("same").done
    assert one.ledger.get("same").gpu_memory_mb == 2_000


def test_the_servers_own_clock(ledger_client: redis.Redis, pool: str) -> None:
    ledger = Ledger(ledger_client, pool)
    seconds, microseconds = ledger_client.time()
    assert 0 <= ledger.snapshot().at - (seconds + microseconds / 1e6) + 0.001 < 5


def test_a_server_that_is_gone_is_named_without_its_password() -> None:
    client = redis.Redis.from_url("redis://user:secret@127.0.0.1:1/3", retry=None)
    with pytest.raises(LedgerUnavailable, match=r"redis://127\.0\.0\.1:1/3") as caught:
        Ledger(client, "p").snapshot()
    assert "secret" not in str(caught.value)


def test_durability_warnings_say_what_to_set(another_server: RedisServer) -> None:
    with another_server.client() as client:
        ledger = Ledger(client, "p")
        assert durability_warnings(ledger) == []
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        evicts, forgets = durability_warnings(ledger)
        assert "allkeys-lru" in evicts
        assert "maxmemory-policy noeviction" in evicts
        assert "appendonly yes" in forgets
    another_server.kill()
    with pytest.raises(LedgerUnavailable):
        durability_warnings(ledger)
