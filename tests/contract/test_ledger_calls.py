"""What the most frequent calls cost, in things that can be counted: functions made late, and commands."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import redis

from celery_allocator.ledger import keys, scripts
from celery_allocator.model import State
from tests.support.ledger_pool import LedgerPool

#: Functions that a granted submit or its release may make when it calls them. More: name them in their libraries'
#: headers (``-- often:``, see joining.py), which makes them at once, for a third of the price.
LATE = 6
#: Commands of a granted submit and its release together.
COMMANDS = 40


def pair(cluster: LedgerPool) -> None:
    allocation = cluster.submit(2_000, 2, 4_000).allocation
    assert allocation.state is State.GRANTED
    assert cluster.ledger.release(allocation.allocation_id, allocation.token, "success").done


def test_a_granted_pair_makes_few_functions_late(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.node(gpus=(8_000, 8_000), cores=8)
    pair(cluster)
    load, seen = scripts.load, keys.key(cluster.ledger.pool, "tick") + ":made"

    def telling(name: str, registered: tuple[scripts.Fragment, ...] = ()) -> scripts.Script:
        script = load(name, registered)
        source = script.source.replace("fn[name] = made\n", f'call("SADD", "{seen}", name)\nfn[name] = made\n')
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return dataclasses.replace(script, source=source, sha=sha)

    monkeypatch.setattr(scripts, "load", telling)
    client = cluster.ledger.client
    pair(cluster)
    late = client.smembers(seen)
    cluster.submit(2_000, 9, on_never="wait")
    more = client.smembers(seen)
    client.delete(seen)
    assert len(late) <= LATE, late
    assert more - late >= {b"enqueue", b"promise"}, "what waits needs what a granted pair does not"


def test_a_granted_pair_takes_few_commands(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000), cores=8)
    pair(cluster)
    before = commands(cluster.ledger.client)
    pair(cluster)
    after = commands(cluster.ledger.client)
    took = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    took.pop("cmdstat_info")
    assert took.pop("cmdstat_evalsha") == 2
    assert sum(took.values()) <= COMMANDS, took


def commands(client: redis.Redis) -> dict[str, int]:
    """How often the server has done each command."""
    return {name: stats["calls"] for name, stats in client.info("commandstats").items()}
