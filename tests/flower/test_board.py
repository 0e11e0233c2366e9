"""What the tab reads, without Flower: what is found, and how often the ledger is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from celery_allocator.ledger import Ledger
from celery_allocator.model import Kind, Peaks, Requirements
from celery_allocator.surfaces.flower import board
from celery_allocator.surfaces.flower.board import Board, Query
from tests.flower import scene
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


def test_what_is_told_of_the_hardware(ledger_client: redis.Redis, pool: str) -> None:
    ledger = Ledger(ledger_client, pool)
    scene.hardware(ledger)
    here = Board(lambda: ledger)
    told = json.loads(here.pool())
    (node,) = told["nodes"]
    devices = {one["device"]: one for one in node["devices"]}
    assert [devices[name]["slice_of"] for name in ("gpu_0_mig_0", "gpu_0_mig_1", "gpu_1")] == ["gpu_0", "gpu_0", None]
    rows = {row["name"]: row for row in json.loads(here.running(Query()))["rows"]}
    pair, shared = (
        rows["train.pair"],
        next(row for row in json.loads(here.running(Query()))["rows"] if row["task_id"].startswith("00000001")),
    )
    assert pair["device"] == "h1/gpu_2, gpu_3" and pair["requirements"]["gpu_count"] == 2
    assert [devices[name]["several"] for name in ("gpu_1", "gpu_2", "gpu_3")] == [
        [],
        *[[{"task_id": pair["task_id"], "name": "train.pair", "devices": ["gpu_2", "gpu_3"]}]] * 2,
    ]
    assert (devices["gpu_3"]["state"], devices["gpu_3"]["fault"]) == ("draining", "xid")
    assert devices["gpu_3"]["reason"] == "Xid 79: the GPU has fallen off the bus"
    assert (devices["gpu_2"]["fault"], devices["gpu_2"]["reason"], devices["gpu_2"]["withheld"]) == (None, "", None)
    assert [devices[name]["loaded"] for name in ("gpu_1", "gpu_2")] == [["sdxl"], []]
    # A share: what was asked for, and what that came to; by how much it is beyond it.
    assert (shared["requirements"]["gpu"], shared["requirements"]["gpu_memory_mb"]) == (0.25, 0)
    on = devices[shared["device"].removeprefix("h1/")]
    assert shared["gpu_memory_mb"] == on["memory"]["capacity"] // 4
    assert (shared["use"]["gpu_memory_over_mb"], shared["use"]["ram_over_mb"]) == (500, 0)
    withheld = on["withheld"]
    assert (withheld["total_mb"], withheld["foreign_mb"], withheld["leftover_mb"]) == (11_000, 9_000, 1_500)
    assert withheld["said"][0] == f"9,000 MB of {on['key']} are used by processes that are not ours."
    memory = on["memory"]
    assert (memory["foreign"], memory["leftover"], memory["overused"]) == (9_000, 1_500, 500)
    assert memory["free"] == memory["capacity"] - memory["promised"] - 11_000
    assert node["withheld"]["foreign_mb"] == 30_000


def test_what_tasks_had_better_ask_for_and_where_they_found_it_loaded(ledger_client: redis.Redis, pool: str) -> None:
    ledger = Ledger(ledger_client, pool)
    scene.hardware(ledger)
    ledger.learn_peaks("fine.task", [Peaks(1_000, 900, 0.5)] * 5, Peaks(1_024, 1_000, 1))
    here = Board(lambda: ledger)
    told = json.loads(here.recommendations(50))
    assert [(row["name"], row["resource"], row["verdict"]) for row in told["rows"]] == [
        ("train.pair", "gpu_memory_mb", "too small"),
        ("train.pair", "cpu_cores", "all busy"),
        ("llm.shared", "gpu_memory_mb", "much too large"),
        ("train.pair", "ram_mb", "much too large"),
    ]
    assert told["rows"][0]["declared"] == 61_440 and told["rows"][0]["suggested"] > told["rows"][0]["most"] == 70_000
    assert (told["total"], len(json.loads(here.recommendations(1))["rows"])) == (4, 1)
    # The first to come had to load it.
    assert json.loads(here.placements())["affinity"] == {"hit": 1, "miss": 1}


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
