"""What is measured, on its way through the ledger; and bars and reasons made from it."""

from __future__ import annotations

import json

import pytest

from celery_allocator.model import (
    Allocation,
    ClusterState,
    DeviceState,
    Kind,
    NodeState,
    Requirements,
    State,
    Strategy,
    TaskUse,
    WorkerState,
    WorkerUse,
)
from celery_allocator.overview import Bar, why
from celery_allocator.overview.cluster import overview

USE = WorkerUse(12.5, 9000, 6000, 0.75, 61, 250.5, 20000, 7000, (TaskUse("a1", 5000, 3000), TaskUse("a2", None, 4000)))

JUDGED = WorkerUse(
    12.5,
    gpu_memory_idle_mb=700,
    children_recycled=0,
    tasks=(TaskUse("a", 9, 9, 0, None), TaskUse("b", 9, 9, 8, 7), TaskUse("c")),
)


@pytest.mark.parametrize(
    "use", [USE, WorkerUse(12.5), WorkerUse(12.5, 0, 0, 0.0, 0, 0.0, 0, 0, (TaskUse("a"),)), JUDGED]
)
def test_what_was_measured_comes_back_as_it_was(use: WorkerUse) -> None:
    assert WorkerUse.from_wire(json.loads(json.dumps(use.to_wire())), 12.5) == use


@pytest.mark.parametrize("told", [{"ram_used_mb": "x"}, {"ram_used_mb": -1}, {"ram_used_mb": True}, {"tasks": [["a"]]}])
def test_what_is_no_measurement_is_refused(told: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        WorkerUse.from_wire(told, 0.0)


def test_foreign_memory_is_what_is_not_ours_and_unknown_where_that_is() -> None:
    assert USE.gpu_memory_foreign_mb == 3000
    assert WorkerUse(0, 9000, None).gpu_memory_foreign_mb is None
    assert WorkerUse(0, 10, 20).gpu_memory_foreign_mb == 0


@pytest.mark.parametrize(
    ("bar", "unused", "overused", "free"),
    [
        (Bar(100, 60), 60, 0, 40),
        (Bar(100, 60, 20, 0), 40, 0, 40),
        (Bar(100, 60, 20, 30), 40, 0, 10),
        (Bar(100, 60, 80, 30), 0, 20, 0),
        (Bar(100, 60, 70, None), 0, 10, 30),
        # An idle process keeps 10; a task uses 5 beyond its claim, and another one leaves as much of its own.
        (Bar(100, 60, 70, 0, leftover=10, excess=5, withheld=15), 5, 5, 25),
        (Bar(100, 60, None, 30, withheld=30), 60, 0, 10),
        # The ledger withholds what the latest look does not see any more, until it is told.
        (Bar(100, 60, 20, 0, withheld=25), 40, 0, 15),
        (Bar(100, 90, 90, 30, withheld=30), 0, 0, 0),
    ],
)
def test_the_parts_of_a_bar(bar: Bar, unused: int, overused: int, free: int) -> None:
    assert (bar.unused, bar.overused, bar.free) == (unused, overused, free)
    assert bar.within + bar.unused == bar.promised
    told = bar.as_dict()
    assert (told["unused"], told["overused"], told["free"]) == (unused, overused, free)


# --- a pool of one node with one GPU of 1000 MB, four cores and 5000 MB of RAM


def pool(
    *, free_mb: int = 1000, cores: int = 4, ram_mb: int = 5000, slots: int = 2, paused: str = "", state: str = "ready"
) -> ClusterState:
    held = ("a1",) if free_mb < 1000 else ()
    device = DeviceState("n1", "gpu_0", "GPU-1", "T", 1000, free_mb, state, "w", "q", 2, slots, held)
    cpu = DeviceState("n1", "cpu", "", "", 0, 0, "ready", None, "", 0, 0, ())
    free = tuple(range(4 - cores, 4))
    node = NodeState("n1", (0, 1, 2, 3), free, 5000, ram_mb, "ready", (device, cpu))
    worker = WorkerState("w", "n1", "gpu_0", "q", 2, slots, 9.0, 1, USE)
    return ClusterState("p", 1.0, (node,), (worker,), 0, 1, 0, 1, 0, paused)


def reason(cluster: ClusterState, gpu: int = 800, cores: int = 2, ram: int = 1000, kind: Kind = Kind.TASK) -> str:
    found = why(Requirements(gpu, cores, ram), kind, cluster)
    return f"{found.code}: {found.text}"


def test_each_dimension_that_lacks_is_told() -> None:
    full = pool(free_mb=500, cores=1, ram_mb=10, slots=0)
    lacks = why(Requirements(800, 2, 1000), Kind.TASK, full).lacks
    assert [(lack.dimension, lack.needed, lack.most_free, lack.devices) for lack in lacks] == [
        ("gpu_memory_mb", 800, 500, 1),
        ("cpu_cores", 2, 1, 1),
        ("ram_mb", 1000, 10, 1),
        ("slots", 1, 0, 1),
    ]
    assert reason(pool(free_mb=500)) == "room: Lacks GPU memory (MB) on all of 1 (800 needed, 500 free at most)."


def test_what_is_no_want_of_room() -> None:
    assert reason(pool(paused="stopped")).startswith("stopped: ")
    assert reason(pool(paused="paused")).startswith("paused: ")
    assert reason(pool(state="cordoned")) == "no_device: No GPU that takes tasks is ready."
    assert reason(pool(), gpu=0) == "no_device: No device that takes tasks is ready."
    assert reason(pool()).startswith("in_line: ")
    # By hand no slot is needed, nor a worker.
    assert reason(pool(slots=0), kind=Kind.MANUAL).startswith("in_line: ")
    assert reason(pool(), gpu=0, kind=Kind.MANUAL).startswith("in_line: ")


def test_the_pool_at_one_look() -> None:
    held = Allocation(
        "a1", "t1", "work", State.RUNNING, Kind.TASK, Requirements(400, 1, 3500), Strategy.BEST_FIT, 0.0,
        node="n1", device_id="gpu_0", cpu_cores=(0,),
    )  # fmt: skip
    seen = overview(pool(free_mb=600, cores=3, ram_mb=1500), (held,))
    (node,) = seen.nodes
    gpu, cpu = node.devices
    assert gpu.memory == Bar(1000, 400, 6000, 3000)
    assert (gpu.slots, gpu.held, gpu.use) == (Bar(2, 0), (held,), USE)
    assert (cpu.memory, cpu.use) == (Bar(0, 0), None)
    assert node.ram == Bar(5000, 3500, 7000, 13000)
    assert [(core.core_id, core.allocation_id, core.state) for core in node.cores] == [
        (0, "a1", "held"), (1, None, "free"), (2, None, "free"), (3, None, "free"),
    ]  # fmt: skip
    assert [(one.allocation, one.use) for one in seen.running] == [(held, TaskUse("a1", 5000, 3000))]
    told = json.loads(json.dumps(seen.as_dict()))
    assert told["nodes"][0]["devices"][0]["memory"]["overused"] == 5600
    assert told["allocations"][0]["use"] == {
        "allocation_id": "a1", "gpu_memory_mb": 5000, "ram_mb": 3000, "gpu_memory_over_mb": None, "ram_over_mb": None,
    }  # fmt: skip
