"""What people are told of memory that is withheld."""

from __future__ import annotations

import pytest
import redis

from celery_allocator.allocating import Session
from celery_allocator.model import RamUse, Withheld
from celery_allocator.overview import explain
from tests.support.command_line import Run, allocate
from tests.support.ledger_pool import LedgerPool


def test_status_and_why_say_whose_memory_it_is(run: Run, session: Session) -> None:
    allocate(run, "a", "--gpu-memory=1000")  # by hand: so much of what is foreign counts as its own
    for device in ("gpu_0", "gpu_1"):
        told = Withheld(21_000, 1_500, 300) if device == "gpu_0" else Withheld(21_000, pids_hidden=True)
        session.ledger.withhold("w", "one", f"host1/{device}", told, RamUse(3_000, 1_000), registering=True)
    allocate(run, "b", "--gpu-memory=4000")

    expected = [
        "1,000 MB of RAM of host1 are used by processes that are not ours.",
        "20,000 MB of host1/gpu_0 are used by processes that are not ours.",
        "1,500 MB of host1/gpu_0 are held by processes of its worker that run no task.",
        "300 MB of host1/gpu_0 are used by tasks beyond what they claimed.",
        "21,000 MB of host1/gpu_1 are used beyond what is claimed; by whom cannot be told, process ids are hidden.",
    ]
    assert run("status").splitlines()[-6:] == ["Withheld from tasks:", *expected]
    (node,) = run("status", "--json")["nodes"]
    assert (node["ram_withheld_mb"], node["ram_withheld"]["foreign_mb"]) == (1_000, 1_000)
    gpu = node["devices"][0]
    assert (gpu["memory_mb"], gpu["memory_free_mb"], gpu["withheld_mb"]) == (24_576, 1_776, 21_800)
    assert gpu["withheld"] == {"foreign_mb": 20_000, "leftover_mb": 1_500, "overuse_mb": 300, "pids_hidden": False}

    told = run("why", "b")
    assert [sentence for sentence in expected if sentence in told] == expected[1:], "RAM is no reason"
    (explained,) = run("why", "b", "--json")
    assert explained["places"][0]["withheld"]["foreign_mb"] + explained["places"][1]["withheld"]["foreign_mb"] == 41_000
    for task in ("a", "b"):
        run("cancel", task)


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    return LedgerPool(ledger_client, pool)


def test_it_is_a_reason_only_where_it_is_what_lacks(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=10_000)
    cluster.ledger.withhold("w.n1.gpu_0", "one", "n1/gpu_0", Withheld(2_000), RamUse(5_000, 0))
    cluster.submit(9_000)
    cluster.submit(1_000, ram=7_000)
    cluster.running(5_000)
    cluster.submit(6_000)

    def why(name: str) -> str:
        return explain(cluster.ledger, cluster.ledger.get(name)).reason.text

    # 5000 of 10000 are held, 2000 withheld: without these, 5000 would be free.
    assert "n1/gpu_0 are used" not in why("a1")
    assert why("a2").endswith("5,000 MB of RAM of n1 are used by processes that are not ours.")
    assert "n1/gpu_0 are used" not in why("a4")
    assert cluster.ends("a3") == ["a4"]
    cluster.ends("a4")
    assert why("a1").endswith("2,000 MB of n1/gpu_0 are used by processes that are not ours.")
