"""Many at once with tenants, caps and a reservation: at the end every sum is right, and nobody is left over."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import redis

from celery_allocator.ledger import Ledger, Options, keys
from celery_allocator.model import Kind, Requirements
from tests.contract.test_ledger_races import race
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

RACERS, STEPS = 8, 60
TENANTS = ("", "flood", "vision", "speech")
CAP = 9_000


def used(ledger: Ledger) -> dict[str, list[int]]:
    """What the ledger counts: per tenant GPU memory, cores, RAM, allocations."""
    found: Any = ledger.client.hgetall(keys.key(ledger.pool, "used"))
    return {name.decode(): [int(amount) for amount in text.split()] for name, text in found.items()}


def held(ledger: Ledger) -> dict[str, list[int]]:
    """The same, added up from what is held."""
    sums: dict[str, Counter[int]] = {}
    for a in ledger.held():
        req = a.requirements
        amounts = dict(enumerate((req.gpu_memory_mb, req.cpu_cores, req.ram_mb, 1)))
        sums.setdefault(req.tenant, Counter()).update(amounts)
    return {tenant: [amounts[i] for i in range(4)] for tenant, amounts in sums.items()}


@pytest.mark.parametrize("backfill", ["easy", "greedy", "none"])
def test_tenants_race_for_room(ledger_client: redis.Redis, redis_server: RedisServer, pool: str, backfill: str) -> None:
    cluster = LedgerPool(ledger_client, pool)
    options = Options(backfill=backfill, max_bypass=5, age_weight=1)
    cluster.ledger = Ledger(ledger_client, pool, options=options)
    for node in ("n1", "n2"):
        cluster.node(node, gpus=(10_000, 10_000), cores=16, slots=3, lease_s=600)
    ledger_client.hset(keys.key(pool, "quotas"), "flood", json.dumps({"gpu_memory_mb": CAP, "weight": 2}))

    def turn(ledger: Ledger, i: int) -> int:
        ledger = Ledger(ledger.client, pool, options=options)
        rng, done = random.Random(i), 0
        mine: list[str] = []
        for step in range(STEPS):
            if rng.random() < 0.5 or not mine:
                name = f"r{i}-{step}"
                need = Requirements(
                    rng.choice((0, 1_000, 3_000, 9_000)),
                    rng.choice((1, 2, 5)),
                    rng.choice((0, 2_000)),
                    rng.choice((0, 0, 1)),
                    tenant=rng.choice(TENANTS),
                    expected_runtime_s=rng.choice((0, 5, 50)),
                )
                kind = Kind.MANUAL if rng.random() < 0.2 else Kind.TASK
                ledger.submit(name, name, f"work{i % 3}", need, kind=kind, message=b"m", ttl_s=600)
                mine.append(name)
            else:
                name = mine.pop(rng.randrange(len(mine)))
                outcome = rng.choice(("success", "failure", "requeue"))
                released = ledger.release(name, None, outcome)
                if not released.done or outcome == "requeue":
                    ledger.cancel(name)
                done += 1
            if step % 10 == 0:
                ledger.tick()
            if step % 7 == 0:
                assert held(ledger).get("flood", [0])[0] <= CAP
        return done

    assert sum(race(redis_server, pool, RACERS, turn)) > RACERS
    assert_right(cluster.ledger)
    assert used(cluster.ledger) == held(cluster.ledger)
    while cluster.ledger.snapshot().waiting or cluster.ledger.held():
        names = [a.allocation_id for a in cluster.ledger.held()]
        assert names, "what is left waits beside free room"

        def end(names: list[str], ledger: Ledger, i: int) -> int:
            ledger = Ledger(ledger.client, pool, options=options)
            return sum(ledger.release(name).done for name in names[i::RACERS])

        assert sum(race(redis_server, pool, RACERS, partial(end, names))) == len(names)
        cluster.ledger.settle(o.allocation_id for o in cluster.ledger.tick().obituaries)
        assert_right(cluster.ledger)
        assert used(cluster.ledger) == held(cluster.ledger)
    cluster.ledger.settle(o.allocation_id for o in cluster.ledger.tick().obituaries)
    ledger_client.delete(keys.key(pool, "quotas"))
    assert_empty(cluster.ledger)
