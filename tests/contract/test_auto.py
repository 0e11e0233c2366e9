"""What ``auto`` comes to, and the command that tells what runs used."""

from __future__ import annotations

import re
from typing import Any

import pytest

from celery_allocator.allocating import Session
from celery_allocator.allocating.auto import resolve
from celery_allocator.errors import RequirementsError
from celery_allocator.model import Peaks, Requirements
from celery_allocator.resource_allocator import allocate_resources, tool_schema
from celery_allocator.settings import Settings
from tests.support import by_hand
from tests.support.command_line import Run
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer

AUTO = {"gpu_memory_mb": "auto", "ram_mb": "auto", "cpu_cores": 2}


def asked(cluster: LedgerPool, name: str = "work", settings: Settings | None = None, **more: Any) -> tuple[int, int]:
    found = resolve({**AUTO, **more}, cluster.ledger, settings or Settings(), name)
    assert {key: found[key] for key in more} == more
    return found["gpu_memory_mb"], found["ram_mb"]


# --- what it comes to


def test_a_first_run_gets_most_of_the_smallest_gpu_and_its_share_of_ram(cluster: LedgerPool) -> None:
    cluster.node("large", (40_000, 20_000), cores=4, ram=100_000)
    cluster.node("small", (10_000,), cores=16, ram=64_000)
    assert asked(cluster) == (9000, 7200)
    assert asked(cluster, cpu_cores=0) == (9000, 3600)
    assert asked(cluster, settings=Settings(auto_gpu_memory_mb=5000, auto_ram_mb=700)) == (5000, 700)


def test_from_three_measured_runs_on_it_is_what_is_recommended(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.used("work", Peaks(3000, 500, 1.0), Peaks(2000, 400, 1.0))
    first = asked(cluster)
    assert first == (9000, 14_400)
    cluster.used("work", Peaks(100, None, 1.0))
    assert asked(cluster) == (3584, first[1])  # of RAM, two runs were measured
    cluster.used("work", Peaks(100, 300, 1.0))
    assert asked(cluster) == (3584, 576)
    assert asked(cluster, "other") == first
    assert asked(cluster, settings=Settings(auto_gpu_memory_mb=1)) == (3584, 576)


def test_a_size_of_its_own_counts_as_soon_as_it_is_known(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.used("work", *[Peaks(3000, 500)] * 3, size="small")
    cluster.used("work", *[Peaks(6000, 500)] * 2, size="large")
    assert asked(cluster, size="small")[0] == 3584
    assert asked(cluster, size="large")[0] == asked(cluster)[0] == 6912
    cluster.used("work", Peaks(8000, 500), size="large")
    assert asked(cluster, size="large")[0] == 9216
    assert asked(cluster, size="small")[0] == 3584


def test_it_is_never_more_than_the_largest_device_has(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 4_000), ram=1000)
    cluster.used("work", *[Peaks(9900, 990)] * 3)
    assert asked(cluster) == (10_000, 1000)


def test_with_nothing_to_go_by_it_says_what_to_do(cluster: LedgerPool) -> None:
    with pytest.raises(RequirementsError, match=r"no run of 'work'.*no GPU.*start a worker.*allocator_auto_gpu_memory"):
        asked(cluster)
    cluster.node(gpus=())
    with pytest.raises(RequirementsError, match="no GPU is known"):
        asked(cluster)
    assert resolve({"ram_mb": "auto"}, cluster.ledger, Settings(), "work") == {"ram_mb": 7200}
    with pytest.raises(RequirementsError, match="whole number of cores"):
        Requirements(**resolve({"ram_mb": "auto", "cpu_cores": "auto"}, cluster.ledger, Settings(), "work"))


def test_what_says_no_auto_asks_nobody(cluster: LedgerPool) -> None:
    nobody: Any = None
    assert resolve({"gpu_memory_mb": 5}, nobody, Settings(), "work") == {"gpu_memory_mb": 5}


# --- by hand


def test_by_hand_the_task_type_is_the_name(run: Run, session: Session) -> None:
    def claimed(**needs: Any) -> Any:
        reply = allocate_resources("t", "ml_inference", {"ram_mb": 0, **needs}, session=session)
        assert reply["success"], reply
        return reply["resources"]["gpu_memory_mb"]

    first = int(by_hand.GPU_MB * 0.9)
    assert claimed(gpu_memory_mb="auto") == first
    assert session.ledger.learn_peaks("ml_inference", [Peaks(100, 50)] * 3, Peaks(2048, 4096, 2.0))
    assert claimed(gpu_memory_mb="auto") == 128
    reply = run("allocate", "t", "--task-type=ml_inference", "--gpu-memory=auto", "--ram=auto", "--json")
    assert (reply["resources"]["gpu_memory_mb"], reply["resources"]["ram_mb"]) == (128, 64)
    told = run("plan", "--name=ml_inference", "--gpu-memory-mb=auto", "--by-hand", "--json")
    assert told["requirements"]["gpu_memory_mb"] == 128
    assert "'lots' is not a valid integer" in run("plan", "--gpu-memory=lots", code=2)
    assert "'auto' is not a valid integer" in run("plan", "--cpu-cores=auto", code=2)


def test_on_a_fresh_ledger_the_own_host_is_what_there_is(redis_server: RedisServer, pool: str) -> None:
    session = by_hand.session(redis_server, f"{pool}-fresh")
    reply = allocate_resources("t", "ml_inference", {"gpu_memory_mb": "auto", "ram_mb": 0}, session=session)
    assert reply["resources"]["gpu_memory_mb"] == int(by_hand.GPU_MB * 0.9)


def test_the_tools_schema_takes_it(session: Session) -> None:
    needs = tool_schema(session)["parameters"]["properties"]["resource_requirements"]["properties"]
    assert needs["gpu_memory_mb"]["type"] == ["integer", "string"]
    assert re.fullmatch(needs["ram_mb"]["pattern"], "auto")
    assert needs["cpu_cores"]["type"] == "integer"


# --- the commands


def test_why_says_what_it_asks_for_in_vain(run: Run, session: Session) -> None:
    session.ledger.learn_peaks("ml_inference", [Peaks(3000, 700, 0.4)] * 3, Peaks())
    for task in ("holds", "holds-too", "waits"):
        run(
            "allocate",
            task,
            "--task-type=ml_inference",
            "--gpu-memory=20000",
            "--ram=700",
            "--cpu-cores=2",
            "--ttl=600",
        )
    said = run("why", "waits")
    assert "It asks for 20000 MB GPU, and runs of ml_inference used 3000 at most: 3584 would do (recommend)." in said
    assert "It asks for 2 cores, and runs of ml_inference used 0.4 at most: 1 would do (recommend)." in said
    assert "MB RAM, and runs" not in said
    (told,) = run("why", "waits", "--json")
    assert told["wasteful"]["gpu_memory_mb"] == {"asked": 20000, "most": 3000, "suggested": 3584}
    assert run("why", "holds", "--json")[0]["wasteful"] == {}


def test_the_command_tells_what_is_declared_wrongly(run: Run, session: Session) -> None:
    assert "No run has been measured yet" in run("recommend")
    assert "No run of proj.* has been measured yet" in run("recommend", "proj.*")
    ledger = session.ledger
    ledger.learn_peaks("proj.train", [Peaks(3000, 700, 1.9)] * 3, Peaks(2048, 4096, 2.0))
    ledger.learn_peaks("proj.train", [Peaks(300, 70, 0.1)], Peaks(2048, 0, 1.0), size="small")
    ledger.learn_peaks("other", [Peaks(None, 700, 0.2)] * 9, Peaks(0, 832, 1.0))
    rows = [re.split(r"\s{2,}", line) for line in run("recommend").splitlines()]
    assert rows[0] == ["TASK", "RESOURCE", "RUNS", "DECLARED", "P50", "P99", "MOST", "SUGGESTED", "NOTE"]
    assert [row[:4] + row[6:] for row in rows[1:]] == [
        ["other", "RAM, MB", "9", "832", "700", "832", "-"],
        ["other", "cores", "9", "1", "0.2", "1", "-"],
        ["proj.train", "GPU memory, MB", "3", "2048", "3000", "3584", "too small"],
        ["proj.train", "RAM, MB", "3", "4096", "700", "832", "much too large"],
        ["proj.train", "cores", "3", "2", "1.9", "2", "all busy"],
        ["proj.train (small)", "GPU memory, MB", "1", "2048", "300", "-", "fewer than 3 runs"],
        ["proj.train (small)", "RAM, MB", "1", "0", "70", "-", "fewer than 3 runs"],
        ["proj.train (small)", "cores", "1", "1", "0.1", "-", "fewer than 3 runs"],
    ]
    assert [float(cell) for cell in rows[3][4:6]] == pytest.approx([3000, 3000], rel=0.05)
    told = run("recommend", "proj.*", "--wrong", "--json")
    assert [(one["task_name"], one["size"]) for one in told] == [("proj.train", "")]
    assert told[0]["gpu_memory_mb"]["verdict"] == "too small"
    assert told[0]["suggested"] == {"gpu_memory_mb": 3584, "cpu_cores": 2, "ram_mb": 832}
    assert run("recommend", "other", "--wrong") == "Nothing that was measured is declared wrongly.\n"
    assert run("recommend", "proj.train", "--as-code") == (
        '@app.task(resources={"gpu_memory_mb": 3584, "cpu_cores": 2, "ram_mb": 832})  # proj.train: 3 runs\n'
    )
