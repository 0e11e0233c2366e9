"""Who is over his promise, what is said of it and how often; and when what was killed is free."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from celery_allocator.errors import ResourceOveruse
from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy, TaskUse, WorkerUse
from celery_allocator.plugin import watch as module
from celery_allocator.plugin.growth import Family
from celery_allocator.plugin.holdings import Holding
from celery_allocator.plugin.processes import born
from celery_allocator.plugin.watch import Look, Watch
from celery_allocator.settings import Settings
from tests.support.waiting import wait_until

#: A process that everybody has, and that is not ours to end.
CHILD = os.getppid()
GPU, OTHER = "GPU-aaaa", "GPU-bbbb"


class Request:
    """Stands for Celery's."""

    stale = ""
    overuse: ResourceOveruse | None = None


class Scene:
    """A watch over tasks that run in made-up processes."""

    def __init__(self, action: str, **settings: Any) -> None:
        self.running: list[Holding] = []
        self.requests: list[Request] = []
        self.gpu: dict[int, int | None] = {}
        #: What processes hold of further GPUs.
        self.further: dict[int, dict[str, int | None]] = {}
        self.listed: set[int] | None = set()
        self.at = 0.0
        self.seen = WorkerUse(0.0)
        self.woken = 0
        self.watch = Watch(Settings(on_overuse=action, **settings), lambda: self.running, self._wake, has_gpu=True)

    def _wake(self) -> None:
        self.woken += 1

    def runs(self, name: str, gpu_mb: int, pid: int = CHILD, **place: Any) -> Request:
        need = Requirements(gpu_mb, 1, 0)
        a = Allocation(name, f"t-{name}", "work", State.RUNNING, Kind.TASK, need, Strategy.BEST_FIT, 0.0, **place)
        request = Request()
        self.requests.append(request)
        a = replace(a, token=1)
        self.running.append(Holding(a, weakref.ref(request), pid))
        self.watch.began(pid, a)
        return request

    def _family(self, pid: int) -> Family:
        return Family((pid,), {GPU: self.gpu.get(pid, 0), **self.further.get(pid, {})}, 10)

    def look(self) -> dict[str, int | None]:
        """By how much each task is over, as the next look has it."""
        self.at += 1
        use = WorkerUse(0.0, tasks=tuple(TaskUse(one.allocation.allocation_id) for one in self.running))
        seen = self.seen = self.watch.look(use, Look(self.at, self._family, self.listed))
        return {task.allocation_id: task.gpu_memory_over_mb for task in seen.tasks}


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests whose tasks would be killed: as if the pool were one of processes, and its loop called at once."""
    found: list[Request] = []

    def kill_task(pool: Any, request: Request) -> tuple[tuple[int, str | None], ...]:
        found.append(request)
        return ((CHILD, born(CHILD)),)

    monkeypatch.setattr(module, "can_end", lambda pool: True)
    monkeypatch.setattr(module, "in_loop", lambda call, *args: call(*args))
    monkeypatch.setattr(module, "kill_task", kill_task)
    return found


def test_within_the_tolerance_nobody_is_over() -> None:
    scene = Scene("warn", overuse_tolerance=0.1, overuse_floor_mb=128)
    scene.runs("small", 500, 1)
    scene.runs("large", 5000, CHILD)
    scene.gpu = {1: 628, CHILD: 5500}
    assert scene.look() == {"small": 0, "large": 0}
    scene.gpu = {1: 629, CHILD: 5501}
    assert scene.look() == {"small": 129, "large": 501}
    assert [(report.allocation.allocation_id, report.found.used_mb) for report in scene.watch.reports] == [
        ("small", 629), ("large", 5501),
    ]  # fmt: skip
    assert scene.woken == 2


def test_of_several_gpus_each_is_judged_and_the_worst_is_told() -> None:
    """The promise is of each, and what is on a GPU that it does not have is not its."""
    scene = Scene("warn", overuse_tolerance=0.1, overuse_floor_mb=128)
    places = {"node": "n1", "device_id": "gpu_0", "device_uuid": GPU}
    scene.runs("both", 1000, 1, **places, more_devices=(("gpu_1", OTHER),))
    scene.runs("one", 1000, CHILD, **places)
    scene.gpu = {1: 1100, CHILD: 1100}
    scene.further = {1: {OTHER: 1128}, CHILD: {OTHER: 9000}}
    assert scene.look() == {"both": 0, "one": 0}
    scene.further[1] = {OTHER: None}
    assert scene.look()["both"] == 0
    scene.gpu[1], scene.further[1] = 1200, {OTHER: 3000}
    assert scene.look() == {"both": 2000, "one": 0}
    (report,) = scene.watch.reports
    assert (report.found.promised_mb, report.found.used_mb) == (1000, 3000)
    scene.gpu[1], scene.further[1] = 2500, {OTHER: 100}
    assert scene.look() == {"both": 1500, "one": 0}


def test_what_was_not_promised_or_is_not_told_is_not_judged() -> None:
    scene = Scene("warn")
    scene.runs("none", 0, 1)
    scene.runs("hidden", 500, CHILD)
    scene.gpu = {1: 4000, CHILD: None}
    assert scene.look() == {"none": None, "hidden": None}
    assert not scene.watch.reports


@pytest.mark.parametrize(("action", "level", "reports"), [("log", "INFO", 0), ("warn", "WARNING", 1)])
def test_it_is_said_once_per_run(action: str, level: str, reports: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(action)
    scene.runs("a", 1000)
    for used in (3000, 900, 4000):
        scene.gpu = {CHILD: used}
        scene.look()
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (level, "work[t-a] uses gpu_memory_mb: 3000 MB, 1000 MB promised")
    assert len(scene.watch.reports) == reports


def test_who_is_over_twice_in_a_row_is_killed(killed: list[Request]) -> None:
    scene = Scene("kill")
    request = scene.runs("a", 1000)
    for used in (3000, 900, 3000):  # over, not over, over
        scene.gpu = {CHILD: used}
        scene.look()
    assert killed == []
    scene.look()
    assert killed == [request]
    assert request.overuse is not None
    assert (request.overuse.promised_mb, request.overuse.used_mb) == (1000, 3000)
    (report,) = scene.watch.reports
    assert (report.action, report.found) == ("kill", request.overuse)
    scene.look()
    assert len(killed) == 1


def test_whose_grant_has_moved_on_is_for_others_to_end(killed: list[Request]) -> None:
    scene = Scene("kill")
    scene.runs("a", 1000).stale = "it was granted again"
    scene.gpu = {CHILD: 3000}
    scene.look()
    scene.look()
    assert killed == []


def test_who_has_ended_meanwhile_is_left_alone(killed: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "kill_task", lambda pool, request: None)
    scene = Scene("kill")
    request = scene.runs("a", 1000)
    scene.gpu = {CHILD: 3000}
    for _ in range(3):
        scene.look()
    assert request.overuse is None
    assert not scene.watch.reports


def test_in_a_pool_without_processes_it_is_said_and_nobody_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    scene = Scene("kill")
    here = os.getpid()
    scene.gpu = {here: 100}
    scene.look()
    scene.runs("a", 1000, here)
    scene.runs("b", 500, here)
    scene.gpu = {here: 1700}
    assert scene.look() == {"a": None, "b": None}
    assert caplog.records == []
    scene.gpu = {here: 2600}
    for _ in range(3):
        scene.look()
    together, cannot = (record.getMessage() for record in caplog.records)
    assert together == "work[t-a], work[t-b] use gpu_memory_mb together: 2500 MB, 1500 MB promised"
    assert "nobody is killed" in cannot
    # Whose it is cannot be told, so the ledger is told nothing.
    assert not scene.watch.reports
    scene.running = scene.running[:1]
    scene.look()
    assert len(caplog.records) == 2


@pytest.fixture
def condemned() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def _kill(scene: Scene, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Allocation:
    monkeypatch.setattr(module, "kill_task", lambda pool, request: ((process.pid, born(process.pid)),))
    scene.runs("a", 1000, process.pid)
    scene.gpu = {process.pid: 3000}
    scene.look()
    scene.look()
    return scene.running[0].allocation


def test_what_was_killed_is_free_when_the_driver_was_seen_without_it(
    killed: list[Request], condemned: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: scene.at + 0.5)
    scene, process = Scene("kill"), condemned()
    allocation = _kill(scene, process, monkeypatch)
    scene.listed = {process.pid}
    assert not scene.watch.is_free(allocation)
    process.kill()
    process.wait()
    assert not scene.watch.is_free(allocation)  # gone, but no look since
    scene.running = []
    for _ in range(100):
        scene.look()
        assert not scene.watch.is_free(allocation)
    scene.listed = {CHILD}
    scene.look()
    assert scene.watch.is_free(allocation)
    assert scene.watch.is_free(allocation)


def test_a_driver_that_hangs_is_not_waited_for_for_good(
    killed: list[Request], condemned: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1.5]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    scene, process = Scene("kill"), condemned()
    allocation = _kill(scene, process, monkeypatch)
    process.kill()
    process.wait()
    assert not scene.watch.is_free(allocation)
    now[0] += 29
    assert not scene.watch.is_free(allocation)
    now[0] += 5
    assert scene.watch.is_free(allocation)


def test_of_idle_children_the_one_with_most_memory_is_ended_one_at_a_time(
    killed: list[Request], condemned: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, ended = Scene("warn"), []
    processes = {condemned().pid: mb for mb in (0, 700, 900)}
    _, some, most = processes
    monkeypatch.setattr(module, "idle", lambda pool: [pid for pid in processes if pid not in ended])
    monkeypatch.setattr(module, "recycle", lambda pool, pid, since: bool(since) and not ended.append(pid))
    scene.watch.recycle()
    assert ended == []
    scene.gpu = dict(processes)
    scene.look()
    assert scene.seen.children_recycled == 0
    scene.watch.recycle()
    assert ended == [most]
    scene.look()
    scene.watch.recycle()
    assert ended == [most]  # it still lives
    os.kill(most, 9)
    wait_until(lambda: module.is_gone(most, None), 10, "it to be gone")
    scene.watch.recycle()
    assert ended == [most, some]
    os.kill(some, 9)
    wait_until(lambda: module.is_gone(some, None), 10, "it to be gone")
    scene.look()
    scene.watch.recycle()
    assert ended == [most, some]  # the third one holds nothing
    assert scene.seen.children_recycled == 2


class Clock(threading.Event):
    """A stop signal on which waiting takes no time, but for the clock's. It is given after three times."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        if len(self.waits) == 3:
            self.set()
        return self.is_set()


@pytest.mark.parametrize(
    ("action", "running", "waits"),
    [("warn", True, [5.0]), ("log", True, [5.0]), ("kill", True, [2.0]), ("kill", False, [2.0, 2.0, 1.0])],
)
def test_it_looks_more_often_only_where_somebody_may_be_killed(
    action: str, running: bool, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, scene = Clock(), Scene(action, watch_s=2.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    if running:
        scene.runs("a", 1000)
    scene.watch.wait(clock, 5.0)
    assert clock.waits == waits


def test_where_nothing_is_measured_it_looks_while_somebody_may_be_killed(
    killed: list[Request], condemned: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, scene = Clock(), Scene("kill", watch_s=2.0)
    _kill(scene, condemned(), monkeypatch)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    scene.watch.wait(clock, 0.0)
    assert clock.waits == [0.1]  # for the driver to show its memory free


def test_what_goes_wrong_in_the_event_loop_does_not_end_it(
    killed: list[Request], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(pool: Any, request: Request) -> None:
        raise PermissionError("not ours to end")

    monkeypatch.setattr(module, "kill_task", refused)
    caplog.set_level(logging.ERROR)
    scene = Scene("kill")
    request = scene.runs("a", 1000)
    scene.gpu = {CHILD: 3000}
    scene.look()
    scene.look()
    assert request.overuse is None
    (record,) = caplog.records
    assert "unexpected error" in record.getMessage()


def test_what_was_killed_and_given_back_otherwise_is_not_looked_for_for_good(
    killed: list[Request], condemned: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: scene.at + 0.5)
    scene, process, clock = Scene("kill", watch_s=2.0), condemned(), Clock()
    _kill(scene, process, monkeypatch)
    process.kill()
    process.wait()
    scene.running = []
    scene.look()  # gone
    scene.look()  # and not listed since
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    scene.watch.wait(clock, 5.0)
    assert clock.waits == [2.0, 2.0, 1.0]
