"""The second gate: a child process begins a task only while its worker's lease stands.

The first gate is passed in the worker's main process; the task may then lie in the pool while that process is paused or
cut off, its lease runs out, and the ledger grants the task again. So main tells its children, in a page of memory that
they share, until when its lease stands and how often it has lost it. A child that finds the lease over, or lost since
its task passed the first gate, asks the ledger before it begins. As long as all is well that costs no call.
"""

from __future__ import annotations

import functools
import logging
import mmap
import struct
import time
from typing import Any

from celery_allocator.errors import AllocationNotFound, LedgerUnavailable
from celery_allocator.model import State
from celery_allocator.plugin import isolating
from celery_allocator.plugin.growing import grow
from celery_allocator.plugin.moved import MovedOn
from celery_allocator.plugin.running import fence_of, of_request
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

_ASK_S = 1.0
_GUARDED = "_allocator_guarded"
#: Seconds at which the lease ends, and how often it was lost.
_PAGE = struct.Struct("=dQ")


def clock() -> float:
    """Seconds on a clock that all processes of a host share and that runs on while it sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Fence:
    """Made before the pool forks; written by main, read by its children."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def losses(self) -> int:
        """How often this worker's lease was lost."""
        return int(_PAGE.unpack_from(self._page)[1])

    @property
    def left_s(self) -> float:
        """Seconds that the lease still stands; negative once it is over."""
        return float(_PAGE.unpack_from(self._page)[0]) - clock()

    def extend(self, until: float) -> None:
        """The lease stands until ``until``, on :func:`clock`."""
        _PAGE.pack_into(self._page, 0, until, self.losses)

    def lose(self) -> None:
        """The lease was lost: what passed the first gate before is to ask."""
        _PAGE.pack_into(self._page, 0, 0.0, self.losses + 1)

    def stands(self, losses: int) -> bool:
        """Whether the lease stands, and was not lost since it had been lost ``losses`` times."""
        until, lost = _PAGE.unpack_from(self._page)
        return bool(lost == losses and clock() < until)


def is_guarded(task: Any) -> bool:
    """Whether :func:`guard` was called on it."""
    return bool(getattr(task.run, _GUARDED, False))


def guard(task: Any) -> None:
    """Have the task ask at the fence before it runs, and be granted again if it runs out of GPU memory."""
    run = task.run
    if is_guarded(task):
        return

    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check(task)
        isolating.check(task.request.id)
        try:
            return run(*args, **kwargs)
        except Exception as error:
            grow(task, error)
            raise

    setattr(guarded, _GUARDED, True)
    task.run = guarded


def _check(task: Any) -> None:
    """Raises :class:`MovedOn` where the grant under which this task was to run is not the live one any more."""
    keeper, losses = session(task.app).keeper, fence_of(task.request)
    if keeper is None or losses is None or keeper.fence.stands(losses):
        return
    allocation = of_request(task.request)
    assert allocation is not None
    logger.warning("%s: the lease of this worker is over; asking before it begins", allocation.allocation_id)
    while True:
        try:
            live = session(task.app).ledger.get(allocation.allocation_id)
        except AllocationNotFound:
            live = None
        except LedgerUnavailable:  # cut off: others may run it by now, so wait until that can be known
            time.sleep(_ASK_S)
            continue
        if live is not None and live.token == allocation.token and live.state is State.RUNNING:
            return
        logger.error("%s[%s] is not begun: its grant has moved on", task.name, task.request.id)
        raise MovedOn(f"the grant of {allocation.allocation_id} has moved on")
