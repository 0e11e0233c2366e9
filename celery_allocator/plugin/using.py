"""What a run used at most, measured in the process that runs it, from its beginning to its end.

RAM: the most that was resident, by the kernel's own mark where it can be set back, and what main has sampled of the
task's processes. Cores: CPU time over run time. GPU memory: what main has sampled, what the driver lists of this
process at the end, and PyTorch's own counters where it is loaded. What would be of another task, too, is not told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import SIMULATED_UUID, read_use
from celery_allocator.model import Allocation, Peaks
from celery_allocator.plugin.sampled import Sampled

logger = logging.getLogger(__name__)

_MB = 2**20
#: Seconds from which on a run is worth asking the driver: that takes it some 13 ms.
_ASK_DRIVER_S = 1.0
#: MB of a process beside what PyTorch's allocator has, where the driver does not tell: context and cuBLAS, as measured
#: on H100 and H200 (docs/internals/gpus.md).
_CONTEXT_MB = 710
_PROC = Path("/proc/self")


@dataclass
class Run:
    """One run that is being measured. ``alone``: no other one in this process meanwhile."""

    allocation: Allocation
    #: On the monotonic clock.
    began: float
    #: CPU time of this process by then.
    cpu_s: float
    #: Whether the kernel's mark was set back, and the most this process ever had by then.
    marked: bool
    most_before_mb: int
    #: What PyTorch had reserved by then, of each device.
    reserved: Mapping[int, int]
    alone: bool = True


_runs: dict[str, Run] = {}
#: Names of the tasks that have had a GPU in this process: what frameworks keep of it for later is theirs.
_gpu_names: set[str] = set()


def begin(task_id: str, allocation: Allocation, sampled: Sampled | None) -> None:
    """A task begins in this process. Never raises."""
    if threading.current_thread() is not threading.main_thread():
        return  # a pool of threads (or greenlets): what each of them uses cannot be told
    try:
        _begin(task_id, allocation, sampled)
    except Exception:
        logger.debug("what %s uses cannot be measured", allocation.allocation_id, exc_info=True)


def _begin(task_id: str, allocation: Allocation, sampled: Sampled | None) -> None:
    if allocation.gpu_uuids:
        _gpu_names.add(allocation.task_name)
    most, marked = _most_ever_mb(), _set_mark_back()
    run = Run(allocation, time.monotonic(), _cpu_s(), marked, most, _torch_begins())
    for other in _runs.values():
        other.alone = run.alone = False
    _runs[task_id] = run
    if sampled is not None:
        sampled.forget(allocation.allocation_id)


def end(task_id: str, sampled: Sampled | None) -> Peaks | None:
    """It ends: what it used at most; ``None`` where that cannot be told. Never raises."""
    run = _runs.pop(task_id, None)
    if run is None or not run.alone:
        return None
    try:
        return _end(run, sampled)
    except Exception:
        logger.debug("what %s used could not be measured", run.allocation.allocation_id, exc_info=True)
        return None


def _end(run: Run, sampled: Sampled | None) -> Peaks:
    wall_s = time.monotonic() - run.began
    gpu, ram = sampled.of(run.allocation.allocation_id) if sampled is not None else (None, None)
    return Peaks(
        gpu_memory_mb=_gpu_mb(run, gpu, wall_s) if run.allocation.gpu_uuids else None,
        ram_mb=_most(ram, _ram_mb(run)),
        cpu_cores=max(0.0, _cpu_s() - run.cpu_s) / wall_s if wall_s > 0 else None,
    )


def forget() -> None:
    """Nothing has run in this process yet (tests)."""
    _runs.clear()
    _gpu_names.clear()


def _cpu_s() -> float:
    """CPU time of this process, its threads, and its children that have ended and were waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _set_mark_back() -> bool:
    """Have the kernel forget the most RAM this process has had (``VmHWM``, see proc(5)); False where it does not."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return _status_mb("VmHWM") is not None


def _most_ever_mb() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit // _MB


def _status_mb(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) // 1024
    return None


def _ram_mb(run: Run) -> int:
    """The most of this run; where the kernel's mark cannot be set back and has not moved, what it has at the end."""
    marked = _status_mb("VmHWM") if run.marked else None
    if marked is not None:
        return marked
    most = _most_ever_mb()
    return most if most > run.most_before_mb else int(psutil.Process().memory_info().rss) // _MB


def _gpu_mb(run: Run, sampled: int | None, wall_s: float) -> int | None:
    """``None`` also for 0: its use may have been missed."""
    own = max(_driver_mb(run.allocation).values(), default=None) if wall_s >= _ASK_DRIVER_S else None
    # The driver tells of the process. What a task of another name has left in there is not this one's.
    of_process = _most(sampled, own) if _gpu_names == {run.allocation.task_name} else None
    return _most(of_process, _torch_mb(run, own)) or None


def _driver_mb(allocation: Allocation) -> dict[str, int]:
    """GPU memory of this process, of each device on which the driver lists it."""
    found: dict[str, int] = {}
    for uuid in allocation.gpu_uuids:
        if uuid.startswith(SIMULATED_UUID):
            continue
        try:
            listed = read_use(uuid).processes or {}
        except InventoryError as error:
            logger.debug("what this run used of %s is not known: %s", uuid, error)
            continue
        mine = listed.get(os.getpid())
        # Ids that mean nothing here are those of a host: one may be as ours by chance.
        if mine and all(psutil.pid_exists(pid) for pid in listed):
            found[uuid] = mine
    return found


def _torch_cuda() -> Any:
    """``torch.cuda``, if it is loaded and in use here: nothing is imported or initialised for this."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _torch_begins() -> dict[int, int]:
    """Set PyTorch's own marks back; what it has reserved of each device, in bytes."""
    reserved: dict[int, int] = {}
    cuda = _torch_cuda()
    for device in range(cuda.device_count()) if cuda is not None else ():
        reserved[device] = int(cuda.memory_reserved(device))
        cuda.reset_peak_memory_stats(device)
    return reserved


def _torch_mb(run: Run, own_mb: int | None) -> int | None:
    """What PyTorch has had of one device, and the context beside it.

    What it kept from earlier runs and did not have to enlarge may be more than this one needs: then what was in use.
    """
    cuda = _torch_cuda()
    if cuda is None:
        return None
    needs, held = [0], [0]
    for device in range(cuda.device_count()):
        most, held_now = int(cuda.max_memory_reserved(device)), int(cuda.memory_reserved(device))
        needs.append(most if most > run.reserved.get(device, 0) else int(cuda.max_memory_allocated(device)))
        held.append(held_now)
    if not max(needs):
        return None
    beside = _CONTEXT_MB if own_mb is None else max(0, own_mb - max(held) // _MB)
    return -(-max(needs) // _MB) + beside


def _most(*amounts: int | None) -> int | None:
    return max((amount for amount in amounts if amount is not None), default=None)
