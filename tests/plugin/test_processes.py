"""Which process is meant by a pid, and whether it is gone."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from celery_allocator.plugin.processes import born, is_gone
from tests.support.waiting import wait_until

#: Its first thread ends by the system call itself (Linux's number of it), so that the process lives on in the second.
_WITHOUT_ITS_FIRST_THREAD = """
import ctypes, sys, threading
libc = ctypes.CDLL(None)
threading.Thread(target=lambda: libc.pause()).start()
print("here", flush=True)
libc.syscall(60 if sys.argv[1] == "x86_64" else 93, 0)
"""


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python with that program; it has said something by then."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *args]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "here\n"
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_a_zombie_is_gone_and_so_is_what_was_waited_for(process: Callable[..., subprocess.Popen[str]]) -> None:
    it = process("print('here', flush=True); input()")
    since = born(it.pid)
    assert since is not None
    assert not is_gone(it.pid, since)
    it.kill()
    wait_until(lambda: psutil.Process(it.pid).status() == psutil.STATUS_ZOMBIE, 30)
    assert is_gone(it.pid, since)
    it.wait()
    assert is_gone(it.pid, since)


def test_a_process_is_not_gone_while_a_thread_of_it_runs(process: Callable[..., subprocess.Popen[str]]) -> None:
    """It looks like a zombie, and keeps all its memory."""
    it = process(_WITHOUT_ITS_FIRST_THREAD, platform.machine())
    since = born(it.pid)
    wait_until(lambda: psutil.Process(it.pid).status() == psutil.STATUS_ZOMBIE, 30)
    assert it.poll() is None
    assert not is_gone(it.pid, since)
    it.kill()
    wait_until(lambda: is_gone(it.pid, since), 30)


def test_a_pid_that_another_process_has_by_now(process: Callable[..., subprocess.Popen[str]]) -> None:
    it = process("print('here', flush=True); input()")
    where, _, ticks = str(born(it.pid)).rpartition(":")
    assert is_gone(it.pid, f"{where}:{int(ticks) - 1}")
    assert not is_gone(it.pid, None)
    # Of one that was started under another boot or namespace, nothing can be told from here.
    assert not is_gone(it.pid, f"elsewhere:{ticks}")
