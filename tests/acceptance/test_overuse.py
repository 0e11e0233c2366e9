"""Who uses more than was promised: warned or killed, and what that gives back. Real processes, a scripted driver."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.result import AsyncResult

from celery_allocator.errors import ResourceOveruse
from celery_allocator.overview import read_overview
from celery_allocator.plugin.processes import born, is_gone
from tests.support.cluster import SOON_S, Cluster, current, worker_spec
from tests.support.fake_nvml import FakeGpu, FakeNvml, fake_nvml, nvml_library
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

UUID = "GPU-aaaa"
GPU_MB = 8192
pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Host:
    """A node with one scripted GPU and a worker of two slots."""

    def __init__(self, new_cluster: Callable[..., Cluster], nvml: FakeNvml, action: str, **settings: str) -> None:
        self._nvml = nvml
        self._environ = nvml.environ([FakeGpu(UUID, memory_mb=GPU_MB)])
        library = {key: self._environ[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_SCRIPT")}
        often = {"ALLOCATOR_MEASURE_S": "0.1", "ALLOCATOR_WATCH_S": "0.1", "ALLOCATOR_HEARTBEAT_S": "0.1"}
        small = {"ALLOCATOR_ON_OVERUSE": action, "ALLOCATOR_OVERUSE_FLOOR_MB": "32"}
        place = {"ALLOCATOR_NODE": "host1", "ALLOCATOR_DEVICES": "auto"}
        self.cluster = new_cluster(host={**place, **library, **often, **small, **settings})
        self.cluster.start(worker_spec("gpu0", "0", "--concurrency", "2"))

    def becomes(self, *processes: tuple[int, int | None], **options: Any) -> None:
        """What the driver tells from now on."""
        self._nvml.change(self._environ, [FakeGpu(UUID, memory_mb=GPU_MB, processes=processes, **options)])

    def told(self, task_id: str) -> list[dict[str, str]]:
        """What became of a task that had begun, as the event stream has it."""
        events = [event for _, event in self.cluster.ledger.events(count=100_000) if event["task"] == task_id]
        return [event for event in events if event["event"] in ("overuse", "released", "lost", "requeued")]

    def swell(self, key: str, mb: int, *, elsewhere: bool = False) -> tuple[AsyncResult, list[int]]:
        """A task that was promised 64 MB of RAM and holds so much; and its processes."""
        asked = {"gpu_memory_mb": 512, "ram_mb": 64}
        result = self.cluster.app.send_task("zoo.swell", (key, mb, elsewhere), resources=asked)
        found = self.cluster.client.blpop([f"{key}:pids"], timeout=SOON_S)
        assert found, self.cluster.logs()
        return result, json.loads(found[1])


@pytest.fixture(scope="module")
def one_host(
    broker_url: str, cluster_backend: RedisServer, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A host whose worker kills, for as many tests as like to share it."""
    folder = tmp_path_factory.mktemp("killing")
    made: list[Cluster] = []

    def new_cluster(**options: Any) -> Cluster:
        made.append(Cluster(broker_url, cluster_backend, folder, **options))
        return made[-1]

    try:
        yield Host(new_cluster, FakeNvml(nvml_library, folder), "kill")
    finally:
        for each in made:
            each.close()


@pytest.fixture
def killing(one_host: Host) -> Iterator[Host]:
    with current(one_host.cluster):
        yield one_host
        one_host.becomes()
        one_host.cluster.settle()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["itself", "a process that it started"])
def test_ram_overuse_is_killed_and_reported(killing: Host, elsewhere: bool) -> None:
    """Not repeated, although it says acks_late and reject_on_worker_lost; and whoever held the memory is gone."""
    cluster, key = killing.cluster, killing.cluster.key()
    result, pids = killing.swell(key, 300, elsewhere=elsewhere)
    with pytest.raises(ResourceOveruse) as caught:
        result.get(timeout=SOON_S)
    error = caught.value
    assert (error.resource, error.promised_mb) == ("ram_mb", 64)
    assert 64 + 32 < error.used_mb < 600
    assert "ram_mb: " in str(error)
    cluster.settle()
    assert cluster.counter(f"{key}:runs") == 1
    overuse, released = killing.told(result.id)
    said = {"event": "overuse", "resource": "ram_mb", "promised_mb": "64", "action": "kill"}
    assert said.items() <= overuse.items()
    assert (released["outcome"], released["error"]) == ("failure", "ResourceOveruse")
    assert all(is_gone(pid, None) for pid in pids)
    assert "nobody is killed" not in cluster.logs()


def test_its_slot_comes_back_when_the_driver_shows_its_memory_free(killing: Host) -> None:
    cluster, key = killing.cluster, killing.cluster.key()
    result = cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 1024})
    child = cluster.held_in(key)
    since = born(child)
    killing.becomes((child, 3000))
    with pytest.raises(ResourceOveruse, match="gpu_memory_mb: 3000 MB used, 1024 MB promised"):
        result.get(timeout=SOON_S)
    cluster.until(lambda: is_gone(child, since), "its process to be gone")
    # The driver still lists it: what is placed in the meantime is placed beside it.
    other = cluster.key()
    next_to_it = cluster.app.send_task("zoo.hold", (other,), resources={"gpu_memory_mb": 512})
    cluster.held_in(other)
    assert [event["event"] for event in killing.told(result.id)] == ["overuse"]
    assert cluster.device("gpu_0").memory_free_mb == GPU_MB - 1024 - 512
    killing.becomes()
    cluster.until(lambda: cluster.device("gpu_0").memory_free_mb == GPU_MB - 512, "its memory to come back")
    cluster.let_go(other)
    assert next_to_it.get(timeout=SOON_S) == other
    cluster.settle()
    assert [event["event"] for event in killing.told(result.id)] == ["overuse", "released"]


def test_a_kill_that_races_with_the_end_of_its_task(killing: Host) -> None:
    """Some are killed and some are not, but each ends once, as its result says, and nothing is given back twice."""
    cluster, results = killing.cluster, []
    for number in range(12):
        key = cluster.key()
        if number % 4:  # it ends by itself, about when it is found to be over its promise for the second time
            cluster.let_go(key)
        result, _ = killing.swell(key, 100 + 20 * number)
        with contextlib.suppress(ResourceOveruse):
            result.get(timeout=SOON_S)
        results.append(result)
    cluster.settle()
    assert {result.state for result in results} <= {"SUCCESS", "FAILURE"}
    for result in results:
        told = killing.told(result.id)
        (released,) = (event for event in told if event["event"] != "overuse")
        assert released["event"] == "released"
        ended_well = result.state == "SUCCESS"
        assert (released["outcome"], released.get("error")) == (
            ("success", None) if ended_well else ("failure", "ResourceOveruse")
        )
        if not ended_well:
            assert [event["event"] for event in told] == ["overuse", "released"]
    assert [results[0].state, results[4].state, results[8].state] == ["FAILURE"] * 3
    # Both children are whole.
    assert cluster.app.send_task("zoo.add", (1, 2)).get(timeout=SOON_S) == 3


def test_no_two_running_tasks_share_a_core(killing: Host) -> None:
    """As the kernel has it, of the cores that this machine really has."""
    cluster, everything = killing.cluster, os.sched_getaffinity(0)
    keys = [cluster.key() for _ in range(min(2, len(everything)))]
    for key in keys:
        cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 512, "cpu_cores": 1})
    masks = [set(psutil.Process(cluster.held_in(key)).cpu_affinity()) for key in keys]
    granted = [set(one.cpu_cores) for one in cluster.ledger.held()]
    cluster.let_go(*keys)
    assert sorted(map(sorted, masks)) == sorted(map(sorted, granted))
    assert set.union(*masks) <= everything
    assert sum(map(len, masks)) == len(set.union(*masks)) == len(keys)


def test_gpu_overuse_is_warned_of_once(new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml) -> None:
    host = Host(new_cluster, fake_nvml, "warn")
    cluster, key, other = host.cluster, host.cluster.key(), host.cluster.key()
    over = cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 1024})
    child = cluster.held_in(key)
    within = cluster.app.send_task("zoo.hold", (other,), resources={"gpu_memory_mb": 2048})
    neighbour = cluster.held_in(other)
    host.becomes((child, 3000), (neighbour, 2100))
    cluster.until(lambda: host.told(over.id), "the ledger to be told")

    def seen() -> dict[str, int | None]:
        running = read_overview(cluster.ledger).running
        return {one.allocation.task_id: one.use.gpu_memory_over_mb for one in running if one.use is not None}

    wait_until(lambda: seen() == {over.id: 3000 - 1024, within.id: 0}, SOON_S, lambda: f"both judged: {seen()}")
    host.becomes((child, 3500), (neighbour, 2100))
    wait_until(lambda: seen()[over.id] == 3500 - 1024, SOON_S, "the next look")
    cluster.let_go(key, other)
    assert (over.get(timeout=SOON_S), within.get(timeout=SOON_S)) == (key, other)
    cluster.settle()
    overuse, released = host.told(over.id)
    assert (overuse["used_mb"], overuse["action"], released["outcome"]) == ("3000", "warn", "success")
    assert [event["event"] for event in host.told(within.id)] == ["released"]
    assert cluster.logs().count("3000 MB, 1024 MB promised") == 1


def test_what_an_earlier_task_left_is_not_held_against_the_next(killing: Host) -> None:
    """Caches of a framework stay in the child; the next task has not put them there."""
    cluster, first = killing.cluster, killing.cluster.key()
    cluster.app.send_task("zoo.hold", (first,), resources={"gpu_memory_mb": 4096})
    child = cluster.held_in(first)
    killing.becomes((child, 4000))
    cluster.let_go(first)
    cluster.settle()

    def idle_mb() -> int | None:
        use = next(one.use for one in read_overview(cluster.ledger).devices if one.device.is_gpu)
        return None if use is None else use.gpu_memory_idle_mb

    wait_until(lambda: idle_mb() == 4000, SOON_S, lambda: f"what it left to be seen: {idle_mb()}")
    keys = [cluster.key(), cluster.key()]  # one for each child
    results = [cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 512}) for key in keys]
    assert child in [cluster.held_in(key) for key in keys]
    wait_until(lambda: idle_mb() == 0, SOON_S, "it to run something again")

    def judged(mb: int) -> bool:
        uses = [one.use for one in read_overview(cluster.ledger).running if one.use is not None]
        return {(use.gpu_memory_mb, use.gpu_memory_over_mb) for use in uses} == {(mb, 0), (0, 0)}

    killing.becomes((child, 4500))
    wait_until(lambda: judged(4500), SOON_S, "what it adds to be seen, and found to be within its promise")
    cluster.let_go(*keys)
    assert [result.get(timeout=SOON_S) for result in results] == keys
