"""Around a running task, in the process that runs it: its allocation, its cores, and its release.

The release here is the fast path. It is not what safety rests on (Celery swallows what signal handlers raise): the
request in the worker's main process hears of every ending, and the keeper releases what is still held then.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from celery import current_task, signals, states
from celery.exceptions import Reject

from celery_allocator.isolation import Previous, pin, unpin
from celery_allocator.model import Allocation
from celery_allocator.plugin import found, isolating, tracing, using
from celery_allocator.plugin.envelope import HEADER
from celery_allocator.plugin.moved import GrantedAgain, MovedOn
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

#: Key of the started allocation inside the plugin's header.
GRANT = "grant"
#: Key in it of how often the worker had lost its lease by then (see ``fence.py``).
FENCE = "fence"

_OUTCOMES = {
    states.SUCCESS: "success",
    states.FAILURE: "failure",
    states.RETRY: "retry",
    states.IGNORED: "ignored",
    states.REJECTED: "rejected",
}
#: Key in it of the memory of each of its GPUs, in MB.
TOTALS = "totals"
#: Longest name of an exception's class that is recorded.
_LONGEST_NAME = 100
_pinned: dict[str, Previous | None] = {}


def current_allocation() -> Allocation | None:
    """The allocation of the task that runs here, or ``None`` outside of one (and for tasks without requirements).

    Its ``cpu_cores`` are the ids of the cores the task is pinned to; ``gpu_id``, ``gpu_uuid`` and ``gpu_memory_mb`` say
    what it may use of which GPU, in MB.
    """
    task = current_task
    return of_request(task.request) if task else None


def of_request(request: Any) -> Allocation | None:
    """The allocation that a request of the gate carries, if it carries one."""
    header = getattr(request, HEADER, None)
    grant = header.get(GRANT) if isinstance(header, dict) else None
    return Allocation.from_wire(grant) if grant else None


def fence_of(request: Any) -> int | None:
    """How often its worker had lost its lease when the task passed the gate; ``None`` outside of an allocated task."""
    header = getattr(request, HEADER, None)
    grant = header.get(GRANT) if isinstance(header, dict) else None
    return int(grant[FENCE]) if grant and FENCE in grant else None


def totals_of(request: Any) -> tuple[int, ...]:
    """Memory of each GPU that a request of the gate was granted, in MB; empty where that is not known."""
    header = getattr(request, HEADER, None)
    grant = header.get(GRANT) if isinstance(header, dict) else None
    return tuple(int(mb) for mb in grant.get(TOTALS, ())) if grant else ()


def error_name(error: object) -> str:
    """The name of an exception's class, as it is recorded: never its text, which may hold anything."""
    name = type(error).__name__ if isinstance(error, BaseException) else ""
    return "".join(char for char in name if char.isprintable())[:_LONGEST_NAME]


def on_prerun(sender: Any = None, task_id: str = "", task: Any = None, **_: Any) -> None:
    """Make the process what was granted, pin it to the granted cores, and measure it (signal ``task_prerun``).

    What it held before that it tells first.
    """
    allocation = of_request(task.request)
    if allocation is None:
        return
    settings, keeper = session(task.app).settings, session(task.app).keeper
    if keeper is not None and (settings.measure_s or settings.on_overuse == "kill"):
        found.tell(allocation, keeper.found)  # before anything is added to it
    tracing.began(task, allocation)
    isolating.enter(task_id, allocation, totals_of(task.request), settings)
    if settings.measure_s:
        using.begin(task_id, allocation, None if keeper is None else keeper.sampled)
    if not allocation.cpu_cores or not settings.pin_cores:
        return
    if threading.current_thread() is not threading.main_thread():
        # A pool of threads: the mask of this thread alone, or its neighbours would move along.
        _pin_thread(allocation)
        return
    _pinned[task_id] = pin(allocation.cpu_cores)


def on_postrun(
    sender: Any = None, task_id: str = "", task: Any = None, retval: Any = None, state: Any = None, **_: Any
) -> None:
    """Give the cores back to the process, and the allocation to the ledger (signal ``task_postrun``)."""
    allocation = of_request(task.request)
    if allocation is None:
        return
    keeper = session(task.app).keeper
    peaks = using.end(task_id, None if keeper is None else keeper.sampled)
    isolating.leave(task_id)
    _unpin(task_id)
    outcome = _OUTCOMES.get(state)
    tracing.ended(task, outcome or "terminated", error_name(retval) if outcome == "failure" else "")
    if outcome is None or isinstance(sys.exc_info()[1], (SystemExit, KeyboardInterrupt)):
        # This process is being terminated, perhaps after the task has returned and before its result was stored. What
        # it holds is free only when it is gone; main sees to that.
        return
    if isinstance(retval, GrantedAgain):
        return
    if isinstance(retval, MovedOn) or (isinstance(retval, Reject) and retval.requeue and task.acks_late):
        outcome = "requeue"
    error = error_name(retval) if outcome == "failure" else ""
    ledger = session(task.app).ledger
    try:
        released = ledger.release(allocation.allocation_id, allocation.token, outcome, error=error, peaks=peaks)
    except Exception as why:  # noqa: BLE001  # whatever it is, the keeper releases
        logger.warning("could not release %s of task %s: %s; the worker will", allocation.allocation_id, task_id, why)
        return
    publish_grants(task.app, released.grants)


def connect_signals() -> None:
    """Connect the two handlers, once per process however often it is called."""
    signals.task_prerun.connect(on_prerun, weak=False, dispatch_uid="celery_allocator.prerun")
    signals.task_postrun.connect(on_postrun, weak=False, dispatch_uid="celery_allocator.postrun")


_thread_masks = threading.local()


def _pin_thread(allocation: Allocation) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    before = os.sched_getaffinity(0)
    cores = set(allocation.cpu_cores) & set(before)
    if cores:
        os.sched_setaffinity(0, cores)
        _thread_masks.before = before


def _unpin(task_id: str) -> None:
    unpin(_pinned.pop(task_id, None))
    before = getattr(_thread_masks, "before", None)
    if before is not None:
        os.sched_setaffinity(0, before)
        _thread_masks.before = None
