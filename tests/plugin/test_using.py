"""What is measured of a run in its own process, and what main has sampled of it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import GpuUse
from celery_allocator.model import Allocation, Kind, Peaks, Requirements, State, Strategy, TaskUse
from celery_allocator.plugin import using
from celery_allocator.plugin.sampled import Sampled
from tests.support.fake_nvml import FakeGpu, FakeNvml, fake_nvml, nvml_library
from tests.support.processes import ROOT

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

_MB = 2**20


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    using.forget()
    yield
    using.forget()


def allocation(name: str = "work", *, gpu: bool = False, id: str = "a1") -> Allocation:  # noqa: A002
    place: dict[str, Any] = {"node": "n1", "device_id": "gpu_0" if gpu else "cpu"}
    if gpu:
        place["device_uuid"] = "GPU-aaaa"
    need = Requirements(1024 if gpu else 0)
    return Allocation(id, "t", name, State.RUNNING, Kind.TASK, need, Strategy.BEST_FIT, 0.0, **place)


def measured(run: Any = lambda: None, sampled: Sampled | None = None, **of: Any) -> Peaks:
    using.begin("t", allocation(**of), sampled)
    run()
    found = using.end("t", sampled)
    assert found is not None
    return found


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / _MB


# --- RAM and cores


@pytest.mark.parametrize("marked", [True, False])
def test_ram_that_was_given_back_before_the_end_counts(monkeypatch: pytest.MonkeyPatch, marked: bool) -> None:
    """Also where the kernel's mark cannot be set back, if the process never had more before."""
    if not marked:
        monkeypatch.setattr(using, "_set_mark_back", lambda: False)
    peak: list[float] = []

    def hold() -> None:
        most = using._most_ever_mb() if not marked else 0
        kept = bytearray(os.urandom(_MB)) * max(300, int(most) + 300 - int(resident_mb()))
        peak.append(resident_mb())
        del kept

    found = measured(hold)
    assert found.ram_mb is not None
    assert peak[0] - 16 <= found.ram_mb <= peak[0] + 64
    assert resident_mb() < peak[0] - 200
    if marked and using._set_mark_back():
        assert (measured().ram_mb or 0) < peak[0] - 200


def test_without_a_mark_that_has_moved_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(using, "_set_mark_back", lambda: False)
    monkeypatch.setattr(using, "_most_ever_mb", lambda: 10**6)
    assert measured().ram_mb == pytest.approx(resident_mb(), abs=16)


def test_cores_are_cpu_time_over_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all threads, and of children that have ended."""
    clock = SimpleNamespace(now=100.0, cpu=5.0, children=1.0)
    monkeypatch.setattr(using.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(using.time, "process_time", lambda: clock.cpu)
    monkeypatch.setattr(
        using.os, "times", lambda: SimpleNamespace(children_user=clock.children, children_system=clock.children)
    )

    def work() -> None:
        clock.now += 2.0
        clock.cpu += 3.0
        clock.children += 0.25

    assert measured(work).cpu_cores == pytest.approx(1.75)


def test_real_cpu_time_is_seen() -> None:
    def burn() -> None:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass

    assert (measured(burn).cpu_cores or 0) > (measured(lambda: time.sleep(0.05)).cpu_cores or 0)


# --- where nothing can be told


def test_two_at_a_time_in_one_process_tell_nothing() -> None:
    using.begin("one", allocation(id="a1"), None)
    using.begin("two", allocation(id="a2"), None)
    assert using.end("one", None) is None
    assert using.end("two", None) is None
    assert measured() is not None


def test_a_pool_of_threads_tells_nothing() -> None:
    found: list[object] = []

    def run() -> None:
        using.begin("t", allocation(), None)
        found.append(using.end("t", None))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None]
    assert using.end("never began", None) is None


def test_what_cannot_be_measured_costs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> float:
        raise OSError("no such thing here")

    monkeypatch.setattr(using, "_cpu_s", refuses)
    using.begin("t", allocation(), None)
    assert using.end("t", None) is None


# --- GPU memory


class Driver:
    """What the driver says of the GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: dict[int, int | None] | None = {}
        self.asked = 0
        monkeypatch.setattr(using, "read_use", self.read_use)
        monkeypatch.setattr(using, "_ASK_DRIVER_S", 0.0)

    def read_use(self, uuid: str) -> GpuUse:
        self.asked += 1
        if self.processes is None:
            raise InventoryError(f"the GPU {uuid} cannot be read")
        return GpuUse(0, self.processes, None, None, None)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def test_the_driver_is_asked_at_the_end_of_a_long_run(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.processes = {os.getpid(): 3000}
    assert measured(gpu=True).gpu_memory_mb == 3000
    assert measured(gpu=False).gpu_memory_mb is None
    monkeypatch.setattr(using, "_ASK_DRIVER_S", 3600.0)
    assert measured(gpu=True).gpu_memory_mb is None
    assert driver.asked == 1


@pytest.mark.parametrize("processes", [None, {}, {1: 500}, {"own": None}, {"own": 0}], ids=repr)
def test_what_the_driver_does_not_tell_is_not_nothing(driver: Driver, processes: Any) -> None:
    pids = {"own": os.getpid()}
    driver.processes = processes and {pids.get(pid, pid): mb for pid, mb in processes.items()}
    assert measured(gpu=True).gpu_memory_mb is None


def test_ids_of_another_namespace_are_not_ours(driver: Driver) -> None:
    """As where one of the host's ids is as ours by chance."""
    driver.processes = {os.getpid(): 3000, max(psutil.pids()) + 1_000_000: 100}
    assert measured(gpu=True).gpu_memory_mb is None


def test_what_main_has_sampled_counts_while_it_can_be_this_tasks_alone(driver: Driver) -> None:
    sampled = Sampled()

    def sample(mb: int) -> Any:
        return lambda: sampled.note([TaskUse("a1", mb, 9000)])

    found = measured(sample(5000), sampled, gpu=True)
    assert (found.gpu_memory_mb, found.ram_mb) == (5000, 9000)
    driver.processes = {os.getpid(): 6000}
    assert measured(sample(5500), sampled, gpu=True).gpu_memory_mb == 6000
    assert measured(sample(5500), sampled, name="other", gpu=True).gpu_memory_mb is None
    assert measured(sample(5500), sampled, gpu=True).gpu_memory_mb is None


#: A worker's main process that has asked the driver, and its child that runs a task and asks at the end.
_CHILD = """
import os, sys
from celery_allocator.inventory import read_use
from celery_allocator.plugin import using
from tests.plugin.test_using import allocation

read_use("GPU-aaaa")
if os.fork() == 0:
    using._ASK_DRIVER_S = 0.0
    using.begin("t", allocation(gpu=True), None)
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    print(using.end("t", None).gpu_memory_mb, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_child_asks_the_real_binding(fake_nvml: FakeNvml) -> None:
    environ = fake_nvml.environ([FakeGpu("GPU-aaaa")])
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
        cwd=ROOT,
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    fake_nvml.change(environ, [FakeGpu("GPU-aaaa", processes=((pid, 3000), (os.getpid(), 500)))])
    told, _ = child.communicate("go\n", timeout=60)
    assert (told, child.returncode) == ("3000\n", 0)


class Torch:
    """PyTorch's counters of one device, in MB."""

    def __init__(self) -> None:
        self.ready = True
        self.reserved = self.most_reserved = self.most_allocated = 0
        self.cuda = self

    def is_initialized(self) -> bool:
        return self.ready

    def device_count(self) -> int:
        assert self.ready, "would initialise CUDA"
        return 1

    def memory_reserved(self, device: int) -> int:
        return self.reserved * _MB

    def max_memory_reserved(self, device: int) -> int:
        return self.most_reserved * _MB

    def max_memory_allocated(self, device: int) -> int:
        return self.most_allocated * _MB

    def reset_peak_memory_stats(self, device: int) -> None:
        self.most_reserved, self.most_allocated = self.reserved, 0

    def uses(self, mb: int) -> None:
        """Allocate and free: what is kept is reused, and enlarged where it is too small."""
        self.most_allocated = max(self.most_allocated, mb)
        self.reserved = max(self.reserved, mb + 20)
        self.most_reserved = max(self.most_reserved, self.reserved)


def test_pytorchs_own_counters_tell_of_each_task(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = Torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    driver.processes = None
    # Without the driver: with what a context takes.
    assert measured(lambda: torch.uses(1000), gpu=True).gpu_memory_mb == 1020 + 710
    # Of another task, which needs less than was kept: what it had in use.
    assert measured(lambda: torch.uses(300), name="other", gpu=True).gpu_memory_mb == 300 + 710
    driver.processes = {os.getpid(): 1620}
    assert measured(lambda: torch.uses(400), name="other", gpu=True).gpu_memory_mb == 400 + 600
    assert measured(name="other", gpu=True).gpu_memory_mb is None
    torch.ready = False
    assert measured(gpu=True).gpu_memory_mb is None


# --- the page


def test_children_see_what_main_has_sampled() -> None:
    sampled = Sampled()
    sampled.note([TaskUse("a1", 100, 50), TaskUse("a2", None, 70)])
    sampled.note([TaskUse("a1", 80, 60), TaskUse("a2", None, None)])
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    child = context.Process(target=lambda: told.put([sampled.of(name) for name in ("a1", "a2", "a3")]))
    child.start()
    assert told.get(timeout=30) == [(100, 60), (None, 70), (None, None)]
    child.join()


def test_what_ran_before_under_the_same_id_is_forgotten() -> None:
    sampled = Sampled()
    sampled.note([TaskUse("a1", 900, 900)])
    sampled.forget("a1")
    assert sampled.of("a1") == (None, None)
    sampled.note([TaskUse("a1", 10, 20)])
    assert sampled.of("a1") == (10, 20)
    sampled.note([])
    assert sampled.of("a1") == (None, None)


def test_of_more_tasks_than_the_page_has_room_for_some_are_not_told() -> None:
    sampled = Sampled()
    many = [TaskUse(f"a{i}", i, i) for i in range(1100)]
    sampled.note(many)
    assert sum(sampled.of(task.allocation_id) != (None, None) for task in many) == 1024
    sampled.note(many[-10:])
    assert all(sampled.of(task.allocation_id) == (task.gpu_memory_mb, task.ram_mb) for task in many[-10:])
