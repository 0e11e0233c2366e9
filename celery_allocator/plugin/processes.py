"""The processes of a worker's pool, as its main process sees them: by pid and start time, since pids are used again."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil


def born(pid: int) -> float | None:
    """When the process started, in seconds since the epoch; ``None`` if it cannot be told."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_gone(pid: int, since: float | None) -> bool:
    """Whether the process that started at ``since`` has ended; a zombie has given its memory back."""
    try:
        process = psutil.Process(pid)
        # Start times come from one clock, but are computed from boot time: allow for rounding.
        if since is not None and abs(process.create_time() - since) > 1.0:
            return True
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def kill(pid: int) -> None:
    """End a process at once, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
