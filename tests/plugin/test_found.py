"""What a process tells of what it held when its task began, from a real child to the process that judges it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from billiard import get_context

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import SIMULATED_UUID
from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy
from celery_allocator.plugin import found as module
from celery_allocator.plugin.found import Found, Held
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.processes import family, own_ram_mb
from celery_allocator.plugin.watch import Watch
from celery_allocator.settings import Settings

GPU, OTHER = "GPU-aaaa", "GPU-bbbb"
A = Allocation(
    "a", "t-a", "work", State.RUNNING, Kind.TASK, Requirements(gpu_memory_mb=1000, ram_mb=64), Strategy.BEST_FIT, 0.0,
    token=1, node="n1", device_id="gpu_0", device_uuid=GPU, more_devices=(("gpu_1", OTHER),),
)  # fmt: skip
B = replace(A, allocation_id="b", token=7)
ON_CPU = {"device_id": "cpu", "device_uuid": None, "more_devices": (), "requirements": Requirements(ram_mb=64)}


class Driver:
    """Lists what it is told to, or fails."""

    def __init__(self, *lists: dict[int, int | None] | InventoryError | None) -> None:
        self._lists = dict(zip((GPU, OTHER), lists, strict=False))

    def of(self, uuid: str) -> dict[int, int | None] | None:
        told = self._lists[uuid]
        if isinstance(told, InventoryError):
            raise told
        return told


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_closely_at", 0.0)
    monkeypatch.setattr(module, "_RARELY", 0)  # but always, however large the process is that runs the tests
    monkeypatch.setattr(module, "_gpus", Driver({}, {}))


def told(allocation: Allocation) -> Held | None:
    """What this process tells as that task begins."""
    found = Found()
    module.tell(allocation, found)
    return found.of([allocation]).get((allocation.allocation_id, allocation.token))


# --- the page


def test_each_is_told_of_its_own_run_and_the_next_takes_its_place() -> None:
    found = Found()
    found.tell(0, A, Held({GPU: 10, OTHER: None}, 5))
    found.tell(1023, B, Held({GPU: 0, OTHER: 2**40}, None))
    assert found.of([A, B, replace(A, token=2)]) == {
        ("a", 1): Held({GPU: 10, OTHER: None}, 5),
        ("b", 7): Held({GPU: 0, OTHER: 2**40}, None),
    }
    found.tell(0, replace(A, token=2), Held())
    assert found.of([A, replace(A, token=2)]) == {("a", 2): Held({GPU: None, OTHER: None}, None)}
    found.tell(1024, A, Held())
    assert found.of([A]) == {}


def test_what_is_half_written_is_not_read() -> None:
    found = Found()
    found.tell(3, A, Held({GPU: 10}, 5))
    at = 3 * module._SIZE + module._HEAD.size
    found._page[at : at + 1] = b"\x99"
    assert found.of([A]) == {}


# --- what is told


def test_of_each_gpu_what_the_process_and_its_descendants_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        driver = Driver({os.getpid(): 300, started.pid: 40, os.getppid(): 7000}, {os.getppid(): 7000})
        monkeypatch.setattr(module, "_gpus", driver)
        held = told(A)
        started.communicate(b"\n")
    assert held is not None
    assert held.gpu_memory_mb == {GPU: 340, OTHER: 0}
    monkeypatch.setattr(module, "_gpus", Driver({os.getpid(): None}, InventoryError("it has fallen off the bus")))
    monkeypatch.setattr(module, "_closely_at", 0.0)
    held = told(A)
    assert held is not None
    assert held.gpu_memory_mb == {GPU: None, OTHER: None}
    assert abs((held.ram_mb or 0) - own_ram_mb(family(os.getpid()))) < 32, "as main, which has no worker above it"
    monkeypatch.setattr(module, "_gpus", Driver(None))
    assert told(replace(A, more_devices=())) is not None


def test_a_process_is_measured_closely_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the time at most; in between what is resident has to do."""
    clock = SimpleNamespace(now=100.0, measured=0)
    process = replace(A, **ON_CPU)  # type: ignore[arg-type]

    def own(pids: Any, main: int) -> int:
        clock.now += 0.05
        clock.measured += 1
        return 400

    monkeypatch.setattr(module, "_RARELY", 100)
    monkeypatch.setattr(module, "own_ram_mb", own)
    monkeypatch.setattr(module, "resident_mb", lambda _: 1000)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)

    def ram() -> int | None:
        held = told(process)
        return None if held is None else held.ram_mb

    assert (ram(), ram()) == (400, 1000)
    clock.now += 4.9
    assert (ram(), clock.measured) == (1000, 1)
    clock.now += 0.2
    assert (ram(), ram(), clock.measured) == (400, 1000, 2)


def test_what_was_not_promised_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gpus", Driver())
    assert told(replace(A, requirements=Requirements())) is None
    held = told(replace(A, requirements=Requirements(ram_mb=64)))
    assert held is not None
    assert held.gpu_memory_mb == {}
    monkeypatch.setattr(module, "_gpus", Driver({os.getpid(): 3}, {}))
    assert told(replace(A, requirements=Requirements(gpu_memory_mb=1))) == Held({GPU: 3, OTHER: 0}, None)


def test_a_descendant_that_has_just_ended_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "family", lambda pid: [pid, 2**31 - 1])
    held = told(A)
    assert held is not None
    assert held.ram_mb


def test_a_simulated_gpu_has_no_driver_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gpus", Driver())
    held = told(replace(A, device_uuid=f"{SIMULATED_UUID}n1-0", more_devices=()))
    assert held is not None
    assert held.gpu_memory_mb == {f"{SIMULATED_UUID}n1-0": None}


def test_a_thread_and_a_process_without_the_page_tell_nothing() -> None:
    found = Found()
    thread = threading.Thread(target=module.tell, args=(A, found))
    thread.start()
    thread.join()
    assert found.of([A]) == {}
    module.tell(A, None)


def test_what_goes_wrong_costs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(module, "resident_mb", broken)
    assert told(A) is None


# --- from a child to the watch


class Request:
    """Stands for Celery's."""


def _work(found: Found, heard: Any, says: Any) -> None:
    """A child: for each word it hears it begins that task, holds so many MB, and says so."""
    held = b""
    while word := heard.recv():
        allocation, mb = word
        del held
        module.tell(allocation, found)
        held = b"x" * (mb * 2**20)
        says.send(len(held))
    says.close()


@pytest.fixture
def child() -> Iterator[tuple[int, Callable[[Allocation, int], Any], Found]]:
    """A process, which begins a task when it is called; and where it tells."""
    context, found = get_context("fork"), Found()
    (heard, say), (hear, says) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(found, heard, says))
    process.index = 3  # its number in the pool
    process.start()

    def begin(allocation: Allocation, mb: int) -> None:
        say.send((allocation, mb))
        assert hear.poll(30)
        hear.recv()

    yield process.pid, begin, found
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("tells", [True, False])
def test_what_its_predecessor_gave_back_is_not_left_to_a_task(child: Any, tells: bool) -> None:
    """Nobody has seen the process between the two. A process that does not tell is given the benefit of the doubt."""
    pid, begin, found = child
    first = replace(A, **{**ON_CPU, "requirements": Requirements(ram_mb=1000)})
    second = replace(B, **ON_CPU)
    holdings = Holdings()
    settings = Settings(on_overuse="warn", overuse_floor_mb=32)
    watch = Watch(settings, holdings.all, lambda: None, has_gpu=False, found=found if tells else None)
    meter, requests = Meter(None, holdings.all, 1.0, watch=watch), []

    def over_mb(allocation: Allocation, mb: int) -> int | None:
        """It begins in the child, and holds so much; by how much that is over its promise at the next look."""
        request = Request()
        requests.append(request)
        watch.began(pid, allocation)
        holdings.add(allocation, request)
        holdings.begun(allocation, pid)
        begin(allocation, mb)
        (task,) = meter.measure().tasks
        holdings.drop(allocation)
        return task.ram_over_mb

    assert over_mb(first, 400) == 0
    over = over_mb(second, 200)
    if tells:
        assert over is not None
        assert 200 - 64 - 16 < over < 200
        (report,) = watch.reports
        assert (report.allocation, report.found.promised_mb) == (second, 64)
    else:
        assert over == 0


def test_a_family_is_a_process_and_all_that_descend_from_it() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        grandchildren = psutil.Process(started.pid).children()
        assert len(grandchildren) == 1
        assert family(started.pid) == [started.pid, grandchildren[0].pid]
        assert {started.pid, grandchildren[0].pid} < set(family(os.getpid()))
        started.communicate(b"\n")
    assert family(started.pid) == [started.pid]
