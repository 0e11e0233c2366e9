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
from click.testing import CliRunner

from celery_allocator.errors import ResourceOveruse
from celery_allocator.overview import explain, read_overview
from celery_allocator.plugin.processes import born, is_gone
from celery_allocator.surfaces.cli import allocator
from tests.support.cluster import SOON_S, Cluster, current
from tests.support.fake_nvml import FakeNvml, fake_nvml, nvml_library
from tests.support.redis_server import RedisServer
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import wait_until

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

GPU_MB = 8192
pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Host(ScriptedHost):
    """A node with one scripted GPU and a worker of two slots."""

    def __init__(self, new_cluster: Callable[..., Cluster], nvml: FakeNvml, action: str) -> None:
        small = {"ALLOCATOR_WATCH_S": "0.1", "ALLOCATOR_ON_OVERUSE": action, "ALLOCATOR_OVERUSE_FLOOR_MB": "32"}
        super().__init__(new_cluster, nvml, GPU_MB, **small)
        self.start()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For one test, which has to leave it empty."""
        with current(self.cluster):
            yield
            self.becomes()
            self.cluster.settle()

    def told(self, task_id: str) -> list[dict[str, str]]:
        """What became of a task that had begun, as the event stream has it."""
        events = [event for _, event in self.cluster.ledger.events(count=100_000) if event["task"] == task_id]
        return [event for event in events if event["event"] in ("overuse", "released", "lost", "requeued")]

    def recycled(self) -> int:
        """How many idle children were replaced, as the worker has told it."""
        use = self.device.use
        assert use is not None
        return use.children_recycled or 0

    def idle_mb(self) -> int | None:
        """GPU memory that idle children hold, as the worker has told it."""
        return None if self.device.use is None else self.device.use.gpu_memory_idle_mb

    def beats(self, times: int) -> None:
        """Wait until the worker has told so often what it has measured."""
        for _ in range(times):
            use = self.device.use
            last = None if use is None else use.at
            wait_until(lambda: (use := self.device.use) is not None and use.at != last, SOON_S, "a heartbeat")  # noqa: B023

    def leaves_behind(self, mb: int) -> int:
        """Have a task run that leaves so much GPU memory in its child, which is idle then; returns its pid."""
        key = self.cluster.key()
        self.cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 4096})
        child = self.cluster.held_in(key)
        self.becomes((child, mb))
        self.cluster.let_go(key)
        self.cluster.settle()
        wait_until(lambda: self.idle_mb() == mb, SOON_S, "what it left to be seen")
        return child

    def swell(self, key: str, mb: int, *, elsewhere: bool = False) -> tuple[AsyncResult, list[int]]:
        """A task that was promised 64 MB of RAM and holds so much; and its processes."""
        asked = {"gpu_memory_mb": 512, "ram_mb": 64}
        result = self.cluster.app.send_task("zoo.swell", (key, mb, elsewhere), resources=asked)
        found = self.cluster.client.blpop([f"{key}:pids"], timeout=SOON_S)
        assert found, self.cluster.logs()
        return result, json.loads(found[1])


@pytest.fixture(scope="module")
def new_host(
    broker_url: str, cluster_backend: RedisServer, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Host]]:
    """Hosts for as many tests as like to share them."""
    made: list[Cluster] = []

    def make(action: str) -> Host:
        folder = tmp_path_factory.mktemp(action)

        def new_cluster(**options: Any) -> Cluster:
            made.append(Cluster(broker_url, cluster_backend, folder, **options))
            return made[-1]

        return Host(new_cluster, FakeNvml(nvml_library, folder), action)

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def one_that_kills(new_host: Callable[[str], Host]) -> Host:
    return new_host("kill")


@pytest.fixture(scope="module")
def one_that_warns(new_host: Callable[[str], Host]) -> Host:
    return new_host("warn")


@pytest.fixture
def killing(one_that_kills: Host) -> Iterator[Host]:
    with one_that_kills.in_use():
        yield one_that_kills


@pytest.fixture
def warning(one_that_warns: Host) -> Iterator[Host]:
    with one_that_warns.in_use():
        yield one_that_warns


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
    killing.beats(5)
    assert killing.device.device.memory_claimed_mb == 1024 + 512
    killing.becomes()
    cluster.until(lambda: killing.device.device.memory_claimed_mb == 512, "its memory to come back")
    cluster.let_go(other)
    assert next_to_it.get(timeout=SOON_S) == other
    cluster.settle()
    assert [event["event"] for event in killing.told(result.id)] == ["overuse", "released"]


def test_a_kill_that_races_with_the_end_of_its_task(killing: Host) -> None:
    """Some are killed and some are not, but each ends once, as its result says, and nothing is given back twice."""
    cluster, results = killing.cluster, []
    for number in range(12):
        key = cluster.key()
        ends = number % 4  # by itself, about when it is found to be over its promise for the second time
        if ends:
            cluster.let_go(key)
        # Who has to be killed holds more than any before it can have left in its child: that is not held against it.
        result, _ = killing.swell(key, 100 + 20 * number if ends else 600)
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


def test_gpu_overuse_is_warned_of_once(warning: Host) -> None:
    host = warning
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
    said = "uses 1,976 MB of GPU memory beyond its promise"
    assert explain(cluster.ledger, cluster.only(over.id)).reason.text == f"It runs on host1/gpu_0. It {said}."
    assert explain(cluster.ledger, cluster.only(within.id)).reason.text == "It runs on host1/gpu_0."
    shown = (
        CliRunner().invoke(allocator, ["--backend-url", cluster.backend.url, "--pool", cluster.pool, "status"]).stdout
    )
    assert f"{cluster.only(over.id).allocation_id} on host1/gpu_0 {said}" in shown
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
    cluster, child = killing.cluster, killing.leaves_behind(4000)
    keys = [cluster.key(), cluster.key()]  # one for each child
    results = [cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 512}) for key in keys]
    assert child in [cluster.held_in(key) for key in keys]
    wait_until(lambda: killing.idle_mb() == 0, SOON_S, "it to run something again")

    def judged(mb: int) -> bool:
        uses = [one.use for one in read_overview(cluster.ledger).running if one.use is not None]
        return {(use.gpu_memory_mb, use.gpu_memory_over_mb) for use in uses} == {(mb, 0), (0, 0)}

    killing.becomes((child, 4500))
    wait_until(lambda: judged(4500), SOON_S, "what it adds to be seen, and found to be within its promise")
    cluster.let_go(*keys)
    assert [result.get(timeout=SOON_S) for result in results] == keys


def test_an_idle_child_is_recycled_when_a_task_waits_for_its_memory(warning: Host) -> None:
    cluster, child = warning.cluster, warning.leaves_behind(4000)
    since = born(child)
    # What it holds is not given away; nobody waits for it, so it keeps it.
    cluster.until(lambda: warning.device.device.memory_free_mb == GPU_MB - 4000, "it to be withheld")
    assert cluster.app.send_task("zoo.add", (1, 2)).get(timeout=SOON_S) == 3
    warning.beats(3)
    assert not is_gone(child, since)
    before = warning.recycled()
    blocked = cluster.app.send_task("zoo.where", resources={"gpu_memory_mb": 6000})
    cluster.until(lambda: is_gone(child, since), "it to be ended")
    wait_until(lambda: warning.recycled() == before + 1, SOON_S, "it to be counted")
    assert cluster.ledger.snapshot().waiting == 1  # the driver shows its memory in use
    warning.becomes()
    assert blocked.get(timeout=SOON_S)["pid"] != child
    cluster.until(lambda: f"process {child} is ended" in cluster.logs(), "that to be told")


def test_an_idle_child_is_left_alone_when_its_memory_would_not_help(warning: Host) -> None:
    """The other child holds too much as it is."""
    cluster, child = warning.cluster, warning.leaves_behind(3000)
    since, keys = born(child), [cluster.key(), cluster.key()]
    held = [cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 4096}) for key in keys[:1]]
    holder = cluster.held_in(keys[0])
    if holder == child:  # it took the very child: let the other one hold, too, and this one go
        held.append(cluster.app.send_task("zoo.hold", (keys[1],), resources={"gpu_memory_mb": 1000}))
        cluster.held_in(keys[1])
        cluster.let_go(keys[0])
    big = cluster.app.send_task("zoo.where", resources={"gpu_memory_mb": 7900})
    cluster.until(lambda: cluster.ledger.snapshot().waiting == 1, "it to wait")
    warning.beats(5)
    assert not is_gone(child, since)
    cluster.let_go(*keys)
    for one in held:
        one.get(timeout=SOON_S)
    # Now it would help.
    cluster.until(lambda: is_gone(child, since), "it to be ended")
    warning.becomes()
    big.get(timeout=SOON_S)
