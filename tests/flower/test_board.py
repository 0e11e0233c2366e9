"""What the tab reads, without Flower: what is found, and how often the ledger is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from celery_allocator.ledger import Ledger
from celery_allocator.model import Kind, Requirements
from celery_allocator.surfaces.flower import board
from celery_allocator.surfaces.flower.board import Board, Query
from tests.support.ledger_pool import LedgerPool


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    """A node with three GPUs, two of them held as one."""
    made = LedgerPool(ledger_client, pool)
    made.node("n1", gpus=(10_000, 10_000, 20_000))
    asked = Requirements(10_000, 1, gpu_count=2, tenant="vision")
    made.ledger.submit("pair", "t-pair", "lease", asked, kind=Kind.MANUAL, ttl_s=60)
    return made


def test_several_gpus_are_found_by_each(cluster: LedgerPool) -> None:
    here = Board(lambda: cluster.ledger)

    def found(**query: Any) -> list[str]:
        return [row["task_id"] for row in json.loads(here.running(Query(**query)))["rows"]]

    assert found(text="n1/gpu_0") == found(text="N1/GPU_1") == ["t-pair"]
    assert found(text="n1/gpu_2") == []
    assert found(text="n1/gpu_1", tenant="vision") == ["t-pair"]
    assert found(text="n1/gpu_1", tenant="text") == []
    (row,) = json.loads(here.running(Query()))["rows"]
    assert (row["device"], row["requirements"]["gpu_count"]) == ("n1/gpu_0, gpu_1", 2)


def test_all_who_look_share_one_look_a_second(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    snapshot = Ledger.snapshot
    monkeypatch.setattr(Ledger, "snapshot", lambda ledger: (looks.append("snapshot"), snapshot(ledger))[1])
    monkeypatch.setattr(Ledger, "tenants", lambda _: (looks.append("tenants"), ())[1])
    monkeypatch.setattr(board, "FRESH_S", 3600.0)
    here = Board(lambda: cluster.ledger)
    for _ in range(3):
        here.pool()
        here.waiting(Query())
        here.running(Query(text="x"))
    assert looks == ["snapshot", "tenants"]
    here.forget()
    here.pool()
    assert len(looks) == 4


def test_tenants_are_told_in_bounds(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_allocator.surfaces.flower.cells.MOST_TENANTS", 3)
    for name in ("a", "b", "c", "d"):
        cluster.submit(20_000, 1, tenant=name)
    told = json.loads(Board(lambda: cluster.ledger).pool())
    assert [tenant["name"] for tenant in told["tenants"]] == ["a", "b", "c"]
    assert told["tenants_total"] == 5
