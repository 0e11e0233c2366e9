"""The meter over real processes; the driver's side of it is in tests/acceptance/test_measuring.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
from tests.support.waiting import wait_until

_HOLD = "import sys; kept = bytearray(b'x' * (int(sys.argv[1]) * 2**20)); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def hold() -> Iterator[Callable[[int], int]]:
    """Start a process that holds so many MB; returns its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(mb: int) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(mb)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process.pid

    yield start
    for process in started:
        process.communicate()


class Request:
    """Stands for Celery's."""


def holdings(*pids: int | None) -> Holdings:
    made = Holdings()
    for number, pid in enumerate(pids):
        allocation = Allocation(
            f"a{number}", f"t{number}", "work", State.RUNNING, Kind.TASK, Requirements(), Strategy.BEST_FIT, 0.0
        )
        made.add(allocation, Request())
        if pid is not None:
            made.begun(allocation, pid)
    return made


def test_resident_memory_of_each_task_of_the_worker_and_of_the_node(hold: Callable[[int], int]) -> None:
    small, large = hold(20), hold(80)
    use = Meter(None, holdings(small, large, None, psutil.Process().pid).all, 1.0).measure()
    rams = {task.allocation_id: task.ram_mb or 0 for task in use.tasks}
    # What has not begun has no process, and of a pool of threads it cannot be told whose memory is whose.
    assert rams.keys() == {"a0", "a1"}
    assert 20 <= rams["a0"] < 80 <= rams["a1"]
    assert use.ram_ours_mb is not None
    assert use.ram_ours_mb >= rams["a0"] + rams["a1"]
    assert use.ram_used_mb is not None
    assert use.ram_used_mb > 0
    assert (use.gpu_memory_used_mb, use.gpu_utilization) == (None, None)


def test_a_task_whose_process_is_gone_is_not_measured() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (task,) = Meter(None, holdings(gone.pid).all, 1.0).measure().tasks
    assert (task.gpu_memory_mb, task.ram_mb) == (None, None)


def test_it_measures_again_and_again_and_hands_each_out_once() -> None:
    meter = Meter(None, holdings().all, 0.01)
    meter.start()
    try:
        for _ in range(3):
            wait_until(meter.take, 30, "a measurement")
    finally:
        meter.stop()
    never = Meter(None, holdings().all, 0)
    never.start()
    assert never.take() is None
