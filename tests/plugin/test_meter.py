"""The meter over real processes; the driver's side of it is in tests/acceptance/test_measuring.py."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from celery_allocator.inventory import cgroup
from celery_allocator.inventory.host import ram_used_mb
from celery_allocator.model import Allocation, Kind, RamUse, Requirements, State, Strategy, WorkerUse
from celery_allocator.plugin import meter
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.watch import Look, Watch
from celery_allocator.settings import Settings
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


@pytest.fixture
def somebody(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process that holds 120 MB and does not descend from this one: its parent has ended."""
    noted = tmp_path / "held"
    hold = f"import time; kept = b'x' * (120 * 2**20); open({str(noted)!r}, 'w').close(); time.sleep(600)"
    command = ["/bin/sh", "-c", f'"{sys.executable}" -c "$0" > /dev/null 2>&1 & echo $!', hold]
    process = psutil.Process(int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    wait_until(noted.exists, 30, "that it holds its memory")
    yield process
    process.kill()


def test_ram_of_a_process_that_is_not_ours_in_a_small_control_group(
    somebody: psutil.Process, hold: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes in a made-up group of 1024 MB, whose files say what these hold and 50 MB of cached files."""
    group, proc = tmp_path / "group", tmp_path / "proc"
    group.mkdir()
    proc.mkdir()
    (proc / "cgroup").write_text("0::/\n")
    (proc / "mountinfo").write_text(f"30 25 0:26 / {group} rw - cgroup2 cgroup2 rw\n")
    (group / "memory.max").write_text(str(1024 * 2**20))
    (group / "memory.stat").write_text(f"active_file {30 * 2**20}\ninactive_file {20 * 2**20}\n")
    task = psutil.Process(hold(80))

    def in_group(*processes: psutil.Process) -> RamUse:
        resident = sum(process.memory_info().rss for process in (psutil.Process(), *processes))
        (group / "memory.current").write_text(str(resident + 50 * 2**20))
        look = Meter(None, holdings(task.pid).all, 1.0, reserved_ram_mb=10)
        monkeypatch.setattr(meter, "ram_used_mb", lambda: ram_used_mb(cgroup.memory_used_bytes(proc)))
        look.measure()
        assert look.beyond is not None
        assert look.beyond.ram is not None
        return look.beyond.ram

    alone, beside = in_group(task), in_group(task, somebody)
    # The child does not share what a forked one would, so a constant rest of the worker itself counts as foreign.
    mine = alone.used_mb - alone.ours_mb
    assert 120 <= beside.used_mb - beside.ours_mb - mine < 200
    # The task has claimed no RAM, and shares as much of it with its worker as that has.
    shared = psutil.Process().memory_info().rss // 2**20
    assert abs(beside.overuse_mb - max(0, task.memory_info().rss // 2**20 - shared)) <= 2


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


def test_a_watch_that_breaks_costs_no_measurement(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hold: Callable[[int], int]
) -> None:
    def broken(self: Watch, use: WorkerUse, look: Look) -> WorkerUse:
        raise RuntimeError("broken")

    monkeypatch.setattr(Watch, "look", broken)
    caplog.set_level(logging.ERROR)
    watch = Watch(Settings(), list, lambda: None, has_gpu=False)
    (task,) = Meter(None, holdings(hold(20)).all, 1.0, watch=watch).measure().tasks
    assert (task.ram_mb or 0) >= 20
    assert "watch: unexpected error" in caplog.text
