"""500 mixed tasks on two simulated GPUs and a CPU worker: at no instant is anything held that is not there.

Seen from both sides: the tasks record what they held and when, and the ledger is sampled all along.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import chain, group

from tests.support.allocator_app import work_on
from tests.support.cluster import Cluster, worker_spec
from tests.support.ledger_checks import over_capacity
from tests.support.records import Capacity, conflicts, most_at_once, read

TASKS = 500
#: Seconds within which all of them are done, on two slow cores beside other work.
DONE_S = 90.0


def shapes(random_: random.Random) -> dict[str, Any]:
    """Requirements, strategy and priority of one task; mixed so that every dimension is scarce at times."""
    gpu = random_.choice((0, 512, 512, 1024, 2048, 3000, 4096, 6000, 8192))
    need = {
        "gpu_memory_mb": gpu,
        "cpu_cores": random_.choice((0, 1, 1, 2, 3, 5) if gpu else (1, 1, 2, 4, 8)),
        "ram_mb": random_.choice((0, 0, 256, 1024, 4096, 9000)),
        "priority": random_.choice((0, 0, 0, 1, 5, -1)),
    }
    return {"resources": need, "strategy": random_.choice(("best_fit", "best_fit", "first_fit", "priority"))}


@contextmanager
def sampled(cluster: Cluster) -> Iterator[list[str]]:
    """Look at the ledger all along while the body runs; yields what was wrong (its first entry counts the looks)."""
    wrong: list[str] = ["0"]
    stop = threading.Event()

    def look() -> None:
        looks = 0
        while not stop.is_set():
            state = cluster.ledger.snapshot()
            wrong.extend(over_capacity(state))
            wrong.extend(
                f"more free than there is: {node}"
                for node in state.nodes
                if not set(node.cpu_cores_free) <= set(node.cpu_cores) or node.ram_free_mb > node.ram_mb
            )
            # The sums: recomputed from the allocations by one script, at one instant.
            wrong.extend(cluster.ledger.verify())
            looks += 1
            wrong[0] = str(looks)
            stop.wait(0.02)

    thread = threading.Thread(target=look, name="sampler")
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()


def capacity_of(cluster: Cluster) -> Capacity:
    """As the workers registered it."""
    state = cluster.ledger.snapshot()
    (node,) = state.nodes
    return Capacity(
        frozenset(node.cpu_cores),
        node.ram_mb,
        {device.device_id: device.memory_mb for device in state.devices},
        {device.device_id: device.slots for device in state.devices},
    )


def hold_on_to_capacity(cluster: Cluster, path: Path, seed: int) -> None:
    """Run the tasks and check everything."""
    random_, key = random.Random(seed), cluster.key()
    capacity = capacity_of(cluster)

    def task(n: int, **options: Any) -> Any:
        return cluster.app.signature("zoo.work", (key, n, random_.random() * 0.02), immutable=True, **options)

    expected: list[tuple[Any, Any]] = []
    runs = 0
    with sampled(cluster) as wrong:
        while runs < TASKS:
            kind = random_.randrange(20)
            if kind == 0:  # a chain: its steps are sent by the workers' children
                steps = [task(runs + i).set(**shapes(random_)) for i in range(3)]
                expected.append((chain(*steps, app=cluster.app).apply_async(), work_on(runs + 2)))
                runs += 3
            elif kind == 1:
                members = [task(runs + i).set(**shapes(random_)) for i in range(4)]
                result = group(members, app=cluster.app).apply_async()
                expected.append((result, [work_on(runs + i) for i in range(4)]))
                runs += 4
            elif kind == 2:  # two claims under one task id, one after the other
                retried = task(runs, kwargs={"retries": 1}).apply_async(**shapes(random_))
                expected.append((retried, work_on(runs)))
                runs += 2
            else:
                delay = {"countdown": random_.random()} if kind == 3 else {}
                expected.append((task(runs).apply_async(**shapes(random_), **delay), work_on(runs)))
                runs += 1
        deadline = time.monotonic() + DONE_S
        for result, value in expected:
            assert result.get(timeout=max(1.0, deadline - time.monotonic())) == value
        cluster.settle()
    assert wrong[1:] == []
    assert int(wrong[0]) > 20, "the ledger was hardly looked at"

    path.write_bytes(b"\n".join(cluster.client.lrange(key, 0, -1)) + b"\n")
    records = read(path)
    assert len(records) == runs
    assert conflicts(records, capacity) == []
    # There was contention, or the test shows nothing: every device ran some, and tasks ran side by side. On which
    # devices is chance where the machine is busy.
    most = most_at_once(records)
    assert set(most) == set(capacity.slots)
    assert max(most.values()) >= 2, most
    assert cluster.ledger.verify() == []


def test_prefork(cluster: Cluster, tmp_path: Path) -> None:
    """Children of three workers."""
    hold_on_to_capacity(cluster, tmp_path / "records.jsonl", seed=1)


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_threads(new_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """Threads of three workers."""
    cluster = new_cluster()
    threads = ("--pool", "threads", "--concurrency", "3")
    cluster.start(*(worker_spec(n, gpu, *threads) for n, gpu in (("gpu0", "0"), ("gpu1", "1"), ("cpu", "none"))))
    hold_on_to_capacity(cluster, tmp_path / "records.jsonl", seed=2)
