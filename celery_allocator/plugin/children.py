"""The children of a worker's pool of processes: which of them run nothing, and how one is ended without losing a task.

All but :func:`idle` is for the thread of the event loop, which alone gives children something to do and hears what
they say: so nothing changes on our side between a look and what follows from it.
"""

# ruff: noqa: SLF001  # none of this can be reached from outside

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from inspect import isgenerator
from typing import Any

import psutil
from billiard.pool import RUN
from kombu.asynchronous import get_event_loop

from celery_allocator.plugin.processes import born, kill

#: A process by its id and when it was born (see ``processes.py``).
Process = tuple[int, str | None]

#: Seconds that a process is given to stop; one in the midst of a system call may take longer.
_STOPS_S = 0.2
#: When the pool looks for whom it has lost, in seconds after it lost somebody. By itself it hears of that late where
#: others have inherited what would tell it.
_LOOKS_S = (0.1, 0.3, 1.2, 2.5)
#: How often one looks for more descendants of what is being ended, at most.
_GENERATIONS = 5


def in_loop(call: Callable[..., object], *args: Any) -> bool:
    """Have the event loop call that soon, from any thread. False where there is no loop."""
    hub = get_event_loop()
    if hub is None:
        return False
    hub.call_soon(call, *args)
    return True


def can_end(pool: Any) -> bool:
    """Whether single tasks of this pool can be ended: it has a process for each, and an event loop gives them out."""
    return _of(pool) is not None and get_event_loop() is not None


def idle(pool: Any) -> list[int]:
    """Ids of the children that were given nothing, as it looks now."""
    inner = _of(pool)
    return [] if inner is None else [child.pid for child in list(inner._pool) if _waits(inner, child)]


def kill_task(pool: Any, request: Any) -> tuple[Process, ...] | None:
    """Kill the child that runs the task of this request, and all that descend from it. Returns whom.

    ``None``, and nothing is done, if it has ended meanwhile or is just about to say so: the child is stopped first, and
    killed only if it has said nothing that was not heard yet. What it is in then it cannot leave.
    """
    pid = request.worker_pid
    inner, child = _child(pool, pid)
    if child is None or not _runs(request, pid):
        return None
    stopped: list[Process] = []
    try:
        if not _stop(pid, stopped) or _has_spoken(child) or not _runs(request, pid):
            _resume(stopped)
            return None
        _stop_descendants(pid, stopped)
    except psutil.Error:
        _resume(stopped)
        return None
    for one, _ in reversed(stopped):  # the child last: nobody sees it dead whose children live
        kill(one)
    _look_soon(inner)
    return tuple(stopped)


def recycle(pool: Any, pid: int, since: str | None) -> bool:
    """End a child that was given nothing, gently; the pool starts another one. False if it was given something."""
    inner, child = _child(pool, pid)
    if child is None or born(pid) != since or not _waits(inner, child):
        return False
    _dismiss(inner, child)
    return True


def retire(pool: Any, pid: int) -> None:
    """Likewise one that has just told its result, and may run nothing more than it was given by then."""
    inner, child = _child(pool, pid)
    if child is not None:
        _dismiss(inner, child)


def _dismiss(inner: Any, child: Any) -> None:
    """Have a child end after all that it was given. The pool gives it nothing more, and starts another one."""
    hub: Any = get_event_loop()
    # From now on the pool knows of no way to give it anything, whichever way it chooses among its children.
    inner._all_inqueues.discard(child.inqW_fd)
    inner._busy_workers.discard(child.inqW_fd)  # it gives nothing while as many are busy as there are ways
    hub.remove_writer(child.inqW_fd)
    child._controlled_termination = True  # else billiard complains of how it ended
    try:
        if child.inqW_fd in inner._active_writes:  # in the midst of being given something: that goes to another one
            child.terminate()
        else:
            child.inq.put(None)  # what a pool that is closed says to its children
    except OSError:  # it has just died, or its pipe is full, which it cannot be
        child.terminate()
    _look_soon(inner)


def _child(pool: Any, pid: int | None) -> tuple[Any, Any]:
    """The pool of processes, and its child of that id; ``None``, where there is none to be ended."""
    inner = _of(pool) if get_event_loop() is not None else None
    return inner, None if inner is None else next((one for one in inner._pool if one.pid == pid), None)


def _of(pool: Any) -> Any:
    """The pool of processes behind Celery's, if that is what it is, while it runs.

    One that is closing is not driven by the thread of the event loop any more.
    """
    inner: Any = getattr(pool, "_pool", None)
    is_one = hasattr(inner, "_all_inqueues") and hasattr(inner, "_cache")
    return inner if is_one and inner._state == RUN else None


def _look_soon(inner: Any) -> None:
    hub: Any = get_event_loop()
    for delay in _LOOKS_S:
        hub.call_later(delay, inner.maintain_pool)


def _waits(inner: Any, child: Any) -> bool:
    """Whether this child is up and was given nothing that has not ended."""
    fd = child.inqW_fd
    if inner._fileno_to_inq.get(fd) is not child or fd not in inner._all_inqueues:
        return False
    if fd in inner._busy_workers or fd in inner._active_writes:
        return False
    return not any(
        child.pid in job.worker_pids() or child in (job._write_to, job._scheduled_for)
        for job in list(inner._cache.values())
    )


def _runs(request: Any, pid: int) -> bool:
    """Whether this process has begun the task of the request, and not said that it has ended."""
    job = request._apply_result() if request._apply_result is not None else None
    return job is not None and job._accepted and not job.ready() and pid in job.worker_pids()


def _has_spoken(child: Any) -> bool:
    """Whether it has said, or begun to say, what was not heard yet."""
    hub: Any = get_event_loop()
    reader, _ = hub.readers.get(child.outqR_fd) or (None, None)
    return isgenerator(reader) or bool(child.outq._reader.poll(0))


def _stop(pid: int, stopped: list[Process]) -> bool:
    """Stop a process, and wait until it does nothing more. False if it is gone, or does not stop in time."""
    since = born(pid)
    if since is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        stopped.append((pid, since))
        for state in _states(pid):
            if state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_DISK_SLEEP):
                return True
            if state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return False
    return False


def _states(pid: int) -> Iterator[str]:
    until = time.monotonic() + _STOPS_S
    process = psutil.Process(pid)
    while True:
        yield process.status()
        if time.monotonic() > until:
            return
        time.sleep(0.001)


def _stop_descendants(pid: int, stopped: list[Process]) -> None:
    """None of them may start another one while they are being killed."""
    for _ in range(_GENERATIONS):
        known = {one for one, _ in stopped}
        new = [child.pid for child in psutil.Process(pid).children(recursive=True) if child.pid not in known]
        if not new:
            return
        for one in new:
            with contextlib.suppress(psutil.Error):
                _stop(one, stopped)


def _resume(stopped: list[Process]) -> None:
    for pid, since in stopped:
        if born(pid) == since:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
