"""The GPU of this machine, and processes that use it. One test uses it at a time, also where several run at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_allocator.inventory import nvml, read_use
from celery_allocator.model import DeviceInventory
from celery_allocator.plugin.processes import born, is_gone
from tests.support.availability import no_device
from tests.support.processes import ROOT, clean_environment
from tests.support.waiting import wait_until

Hold = Callable[..., int]


@pytest.fixture(scope="session")
def gpu() -> DeviceInventory:
    """The first GPU of this machine; without one the test is skipped. A GPU that cannot be read is an error."""
    found = nvml.all_devices()
    return found[0] if found else no_device("NVML finds no GPU here")


@pytest.fixture
def alone(gpu: DeviceInventory) -> Iterator[None]:
    """Nothing else of these tests uses the GPU meanwhile."""
    with (Path(tempfile.gettempdir()) / f"celery-allocator-{gpu.uuid}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(gpu: DeviceInventory) -> dict[str, str]:
    """For a process that is to see this GPU alone."""
    return clean_environment({"CUDA_VISIBLE_DEVICES": gpu.uuid, "PYTHONPATH": python_path()})


def python_path() -> str:
    """This repository, and what this process was given."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


#: Starts the command it is given and ends: nobody here is that command's parent.
_DISOWN = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"


@pytest.fixture
def hold(gpu: DeviceInventory, alone: None) -> Iterator[Hold]:
    """``hold(MB)`` starts a process that takes so many MB of the GPU and keeps them; returns its pid.

    ``busy=True``: it also computes. ``foreign=True``: it does not descend from this process.
    """
    started: list[subprocess.Popen[str]] = []
    holders: list[tuple[int, str | None]] = []

    def start(mb: int, *, busy: bool = False, foreign: bool = False) -> int:
        command = [sys.executable, "-m", "tests.device.holder", str(mb), *(["busy"] if busy else [])]
        process = subprocess.Popen(
            [sys.executable, "-c", _DISOWN, *command] if foreign else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(gpu),
            cwd=ROOT,
        )
        started.append(process)
        assert process.stdout is not None
        told = process.stdout.readline().split()
        assert told[:1] == ["held"], f"the process ended with {process.wait(30)}; what it wrote stands above"
        holders.append((int(told[1]), born(int(told[1]))))
        return holders[-1][0]

    yield start
    for process in started:
        process.communicate(timeout=60)  # ends its input
    wait_until(lambda: all(is_gone(*holder) for holder in holders), 60, "the processes that used the GPU to be gone")


def used_mb(gpu: DeviceInventory) -> int:
    """What the driver says is in use of the GPU."""
    used = read_use(gpu.uuid).used_mb
    assert used is not None
    return used


def pids_are_told(gpu: DeviceInventory, pid: int) -> bool:
    """Whether the driver lists this process, which uses the GPU: in some containers it keeps them to itself."""
    return pid in (read_use(gpu.uuid).processes or {})
