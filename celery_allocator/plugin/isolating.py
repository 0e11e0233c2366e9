"""What a task's process is made for it before it runs, and made back after: devices, caps, threads.

Only where one task runs at a time (prefork and solo pools): what is set here belongs to the whole process. The signals
call :func:`enter` and :func:`leave`; a signal cannot stop a task, so :func:`check` does that, in the task's guard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from billiard import current_process

from celery_allocator.errors import InventoryError, IsolationError
from celery_allocator.inventory import read_use
from celery_allocator.isolation import Claimed, cap_gpu_memory, kept_cap_mb, limit_threads, show_gpus
from celery_allocator.model import Allocation
from celery_allocator.plugin.moved import Unfit
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: Name of the process that started the pool.
MAIN = "MainProcess"


@dataclass
class _Within:
    """One task that runs here. ``unfit``: why it cannot, in words."""

    undo: ExitStack = field(default_factory=ExitStack)
    unfit: str = ""


_within: dict[str, _Within] = {}
#: Tasks that have ended in this process.
_ended = 0


def enter(task_id: str, allocation: Allocation, totals_mb: Sequence[int], settings: Settings) -> None:
    """Make this process what the task was granted. ``totals_mb``: memory of each of its GPUs; empty: not known."""
    if threading.current_thread() is not threading.main_thread():
        if len(allocation.gpu_uuids) > 1:
            logger.warning("task %s has several GPUs, and sees its worker's alone: use a prefork pool", task_id)
        return
    within = _within[task_id] = _Within()
    if allocation.gpu_uuids and not show_gpus(within.undo, allocation.gpu_uuids):
        within.unfit = f"CUDA was initialised here for other GPUs than {', '.join(allocation.gpu_uuids)}"
        return
    if settings.thread_hints and allocation.cpu_cores:
        limit_threads(within.undo, len(allocation.cpu_cores))
    if not settings.gpu_memory_caps or not allocation.gpu_memory_mb or not totals_mb:
        return
    claimed, kept = Claimed(allocation.gpu_memory_mb, totals_mb), kept_cap_mb()
    if kept is not None and kept < claimed.cap_mb:
        within.unfit = f"JAX or TensorFlow is capped here at {kept} MB, for an earlier task"
        return
    cap_gpu_memory(within.undo, claimed, lambda: _free_mb(dict(zip(allocation.gpu_uuids, totals_mb, strict=False))))


def leave(task_id: str) -> None:
    """Put back what :func:`enter` has changed."""
    global _ended  # noqa: PLW0603  # how old this process is
    within = _within.pop(task_id, None)
    if within is None:
        return
    _ended += 1
    try:
        within.undo.close()
    except Exception as error:  # noqa: BLE001  # whatever a framework raises after a task that broke it
        logger.warning("what was set for task %s is not all put back: %s", task_id, error)


def check(task_id: str) -> None:
    """Raises :class:`Unfit` where another process is needed, and :class:`IsolationError` where none would be better."""
    within = _within.get(task_id)
    if within is None or not within.unfit:
        return
    if current_process().name == MAIN:
        raise IsolationError(f"{within.unfit}, and a worker with a solo pool has this process only: use prefork")
    if not _ended:
        raise IsolationError(
            f"{within.unfit}, before a first task ran in this process: so it would be in each. Use CUDA in tasks, "
            "not in what runs when a process of the pool begins"
        )
    raise Unfit(f"{within.unfit}: another process takes it")


def _free_mb(totals_mb: Mapping[str, int]) -> list[int]:
    """What is free of each GPU now, in MB; empty where the driver does not tell."""
    free = []
    try:
        for uuid, total in totals_mb.items():
            used = read_use(uuid).used_mb
            if used is None:
                return []
            free.append(total - used)
    except InventoryError as error:
        logger.debug("what is free is not known: %s", error)
        return []
    return free
