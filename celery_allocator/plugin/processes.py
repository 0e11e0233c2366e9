"""The processes of a worker's pool, as its main process sees them: by pid and birth, since pids are used again."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from pathlib import Path

import psutil


def born(pid: int) -> str | None:
    """Which process has this pid now: where pids are counted and when it started; ``None`` if there is none.

    On Linux in the kernel's ticks since boot, which no change of the clock touches.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        try:
            ticks = str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    return f"{_where()}:{ticks}"


def is_here(since: str | None) -> bool:
    """Whether the process that was born as ``since`` would be seen from here: same boot, same namespace of pids."""
    return bool(since) and str(since).rpartition(":")[0] == _where()


def is_gone(pid: int, since: str | None) -> bool:
    """Whether the process that was born as ``since`` has ended; a zombie has given its memory back.

    But not one of whose threads some live on: the kernel shows a process as a zombie as soon as its first thread has
    ended, while the others keep its memory, on the GPU, too, and may still be computing.
    """
    if since and not is_here(since):
        return False
    now = born(pid)
    if now is None or (since and now != since):
        return True
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE) and not _has_threads(pid)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _has_threads(zombie: int) -> bool:
    """Whether threads beside the first are left of it. Only Linux tells of a zombie's; elsewhere it has none."""
    try:
        return len(list(Path(f"/proc/{zombie}/task").iterdir())) > 1
    except OSError:
        return False


@functools.cache
def _where() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    return "here"


def kill(pid: int) -> None:
    """End a process at once, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_family(pid: int) -> None:
    """End a process and all that descend from it at once, as far as they are there."""
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(pid).children(recursive=True):
            kill(one.pid)
    kill(pid)
