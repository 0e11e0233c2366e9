"""The processes of a worker's pool, as its main process sees them: by pid and birth, since pids are used again."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

_MB = 2**20


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


def family(pid: int) -> list[int]:
    """A process and all that descend from it, by their ids."""
    found, pids = [], [pid]
    while pids:
        one = pids.pop()
        found.append(one)
        pids += _children(one)
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # not Linux, or a kernel that does not list them: look at all there are; or it has just ended
        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.Error:
            return []


def gpu_memory_mb(listed: Mapping[int, int | None] | None, pids: Iterable[int]) -> int | None:
    """GPU memory of processes in MB, as the driver lists it: 0 if they hold none, ``None`` where it does not tell."""
    if listed is None:
        return None
    amounts = [listed[pid] for pid in pids if pid in listed]
    return None if None in amounts else sum(amount or 0 for amount in amounts)


def resident_mb(processes: Iterable[psutil.Process]) -> int | None:
    """Resident memory of processes all together in MB, what they share counted for each; ``None``: all are gone."""
    total = None
    for process in processes:
        try:
            total = (total or 0) + process.memory_info().rss
        except psutil.Error:  # just ended
            continue
    return None if total is None else total // _MB


def own_ram_mb(pids: Iterable[int], main: int | None = None) -> int:
    """RAM that would be free if these processes ended, in MB: at least so much.

    The sum of what each has for itself (its USS); or of its share in what it has with others (PSS), less all that the
    worker's main process has: then what they have among themselves counts, too, as with processes that load data.
    ``main``: that process, where it is not this one.
    """
    own = shared = 0
    ours, main = set(pids), os.getpid() if main is None else main
    workers = 0 if main in ours else psutil.Process(main).memory_info().rss
    for pid in ours:
        try:
            memory = psutil.Process(pid).memory_full_info()
        except psutil.Error:  # just ended
            continue
        # A kernel without /proc/…/smaps (gVisor has none) tells neither.
        own += getattr(memory, "uss", max(0, memory.rss - workers))
        shared += getattr(memory, "pss", 0)
    return max(own, shared - workers) // _MB
