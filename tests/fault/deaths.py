"""Ways for a run to end. Each is a function of the task and the victim's arguments; add yours here."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery.app.task import Task
from celery.exceptions import Ignore, Reject

MEMORY_GROUP = "FAULT_MEMORY_GROUP"
#: Seconds that nothing waits for: what runs that long is to be ended by force.
PATIENT_S = 90


def sigkill(task: Task) -> None:
    """As an operator's ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once(task: Task) -> None:
    """No handler, no ``finally``."""
    os._exit(3)


def exit_politely(task: Task) -> None:
    """What a library does that thinks it is a program."""
    sys.exit(3)


def memory_error(task: Task) -> Any:
    """As CuPy on a full GPU."""
    raise MemoryError("as on a full GPU")


def address_space(task: Task) -> Any:
    """A real ``MemoryError``: this process may not have that much (as under ``ulimit -v``)."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 32 * 2**20, before[1]))
    try:
        return len(bytearray(2**30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def out_of_memory(task: Task) -> Any:
    """Killed by the kernel where ``FAULT_MEMORY_GROUP`` names a control group with little memory.

    Elsewhere the process sends itself what the kernel would send; to a worker that is the same.
    """
    group = os.environ.get(MEMORY_GROUP)
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
        return len(bytearray(b"x") * 2**34)
    return os.kill(os.getpid(), signal.SIGKILL)


def segfault(task: Task) -> None:
    """A null pointer in an extension."""
    ctypes.string_at(0)


def sleep(task: Task, seconds: float = PATIENT_S) -> float:
    """Waits where Python can be interrupted."""
    time.sleep(seconds)
    return seconds


def c_call(task: Task, seconds: float = PATIENT_S) -> float:
    """One call into C that no signal interrupts: Python handles none until it returns."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # zeros are an open mutex
    until = (ctypes.c_long * 2)(int(time.time() + seconds), 0)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_timedlock(mutex, until)
    return seconds


def deaf(task: Task, seconds: float = PATIENT_S) -> float:
    """Ignores SIGTERM until it ends by itself."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, before)
    return seconds


def reject(task: Task) -> Any:
    """The message is dropped."""
    raise Reject("as asked", requeue=False)


def ignore(task: Task) -> Any:
    """No result."""
    raise Ignore


def retry(task: Task) -> Any:
    """Again and again, until ``max_retries`` says no."""
    raise task.retry(exc=ValueError("as asked"), countdown=0, max_retries=2)


def retry_in_a_second(task: Task) -> Any:
    """Once; the second run's error is the result."""
    raise task.retry(exc=ValueError("as asked"), countdown=1, max_retries=1)


def requeue(task: Task, folder: str) -> int:
    """The message is given back twice, then the task succeeds."""
    with (Path(folder) / f"requeue-{task.request.id}").open("a+") as file:
        file.write("x")
        file.flush()
        runs = file.tell()
    if runs < 3:
        raise Reject("as asked", requeue=True)
    return runs


def replace(task: Task) -> Any:
    """Another task takes its place, under its id."""
    raise task.replace(task.app.signature("fault.nap", (0.05,)))
