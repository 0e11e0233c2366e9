"""What the meter says of real processes on a real GPU."""

from __future__ import annotations

import os
import signal

import pytest

from celery_allocator.model import Allocation, DeviceInventory, Kind, Requirements, State, Strategy, WorkerUse
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.processes import born, is_gone
from tests.device import smi
from tests.device.conftest import Hold, pids_are_told, used_mb
from tests.support.waiting import wait_until

pytestmark = pytest.mark.device

#: What a context and the allocator's rounding may take beside the memory that was asked for.
_CONTEXT_MB = 2000
#: What the driver may still be sorting out for others.
_NOISE_MB = 64


class Request:
    """Stands for Celery's."""


class _Tasks:
    """A worker's account of tasks that run in given processes."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self._requests: list[Request] = []

    def add(self, name: str, pid: int) -> None:
        self._requests.append(Request())
        allocation = Allocation(name, name, "work", State.RUNNING, Kind.TASK, Requirements(), Strategy.BEST_FIT, 0.0)
        self.holdings.add(allocation, self._requests[-1])
        self.holdings.begun(allocation, pid)


def _mb(value: int | None) -> int:
    assert value is not None
    return value


def test_ours_each_tasks_and_a_strangers_memory_are_told_apart(gpu: DeviceInventory, hold: Hold) -> None:
    tasks = _Tasks()
    meter = Meter(gpu, tasks.holdings.all, 1.0)
    before = meter.measure()
    small, large, stranger = hold(256), hold(1024), hold(512, foreign=True)
    tasks.add("small", small)
    tasks.add("large", large)
    use = meter.measure()
    assert _mb(use.gpu_memory_used_mb) >= _mb(before.gpu_memory_used_mb) + 256 + 1024 + 512
    measured = {task.allocation_id: task.gpu_memory_mb for task in use.tasks}
    if not pids_are_told(gpu, small):
        # The documented way back: totals are told, and whose they are is not.
        assert (use.gpu_memory_ours_mb, use.gpu_memory_foreign_mb) == (None, None)
        assert measured == {"small": None, "large": None}
        return
    assert 256 <= _mb(measured["small"]) <= 256 + _CONTEXT_MB
    assert 1024 <= _mb(measured["large"]) <= 1024 + _CONTEXT_MB
    assert _mb(use.gpu_memory_ours_mb) == _mb(measured["small"]) + _mb(measured["large"])
    assert pids_are_told(gpu, stranger)
    assert 512 <= _mb(use.gpu_memory_foreign_mb) - (before.gpu_memory_foreign_mb or 0) <= 512 + _CONTEXT_MB


def test_memory_is_free_when_its_process_counts_as_gone(gpu: DeviceInventory, hold: Hold) -> None:
    """What was granted is given back then, and somebody else may take it."""
    before = used_mb(gpu)
    pid = hold(2048)
    since = born(pid)
    assert used_mb(gpu) >= before + 2048
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid, since), 30, "its end", interval=0.001)
    assert used_mb(gpu) <= before + _NOISE_MB
    assert not pids_are_told(gpu, pid)


def test_a_gpu_at_work(gpu: DeviceInventory, hold: Hold) -> None:
    meter = Meter(gpu, Holdings().all, 1.0)
    shown = smi.gpu(gpu.uuid, "utilization.gpu", "temperature.gpu", "power.draw")
    hold(16, busy=True)
    seen: list[WorkerUse] = []

    def at_work() -> bool:
        seen.append(meter.measure())
        return shown["utilization.gpu"] is None or (seen[-1].gpu_utilization or 0) >= 0.5

    wait_until(at_work, 30, lambda: f"half of the time in use: {seen[-1]}", interval=0.1)
    last = seen[-1]
    assert (last.gpu_utilization is None) == (shown["utilization.gpu"] is None)
    assert (last.gpu_power_w is None) == (shown["power.draw"] is None)
    assert last.gpu_power_w is None or last.gpu_power_w > 1
    assert last.gpu_temperature_c is None or 5 < last.gpu_temperature_c < 110
