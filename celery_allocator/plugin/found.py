"""What a task's process held when the task began, told by that process to the worker's main process.

Main looks now and then; in between a child may end one task and begin the next. Only the child is there at that moment.
So it says what it holds, in a page of memory that main shares with its children (as ``fence.py`` does): that costs no
call. A child that was spawned does not have that page, and in a pool of threads no task has a process of its own:
there main has to guess (``growth.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
from billiard import current_process

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import SIMULATED_UUID, GpuProcesses
from celery_allocator.model import Allocation
from celery_allocator.plugin.isolating import MAIN
from celery_allocator.plugin.processes import family, gpu_memory_mb, own_ram_mb, resident_mb

logger = logging.getLogger(__name__)

#: A task that runs: its allocation's id, and its token.
Run = tuple[str, int]

_UNKNOWN = -1
#: GPUs of one task; of more, the rest is not told.
_GPUS = 16
#: Which task, a checksum of what follows, RAM, and GPU memory of each of its GPUs, in MB.
_HEAD = struct.Struct("=16sI")
_AMOUNTS = struct.Struct(f"={1 + _GPUS}q")
_SIZE = _HEAD.size + _AMOUNTS.size
_NOBODY = bytes(16)
#: Children of one pool; further ones tell nothing.
_PLACES = 1024

#: A process is measured closely if that was last done as many times ago as it took: a hundredth of the time at most.
_RARELY = 100


@dataclass(frozen=True)
class Held:
    """What a process and all that descend from it hold, in MB: of each GPU by its UUID, and of RAM what is their own.

    Where RAM cannot be measured closely in time it is resident memory, which is more. ``None``: not told.
    """

    gpu_memory_mb: Mapping[str, int | None] = field(default_factory=dict)
    ram_mb: int | None = None


class Found:
    """Made before the pool forks; each child writes to its place, main reads. Nothing is locked: what is read while it
    is written is known by its checksum, and is there at the next look.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _SIZE * _PLACES)

    def tell(self, place: int, allocation: Allocation, held: Held) -> None:
        """In the child that has ``place`` in the pool: it held so much when that task began."""
        if not 0 <= place < _PLACES:
            return
        gpus = [held.gpu_memory_mb.get(uuid) for uuid in allocation.gpu_uuids[:_GPUS]]
        told = [_UNKNOWN if mb is None else mb for mb in (held.ram_mb, *gpus)]
        amounts = _AMOUNTS.pack(*told, *[_UNKNOWN] * (1 + _GPUS - len(told)))
        head = _HEAD.pack(_key(allocation), zlib.crc32(amounts))
        self._page[place * _SIZE : (place + 1) * _SIZE] = head + amounts

    def of(self, allocations: Iterable[Allocation]) -> dict[Run, Held]:
        """What was told of these tasks' beginnings. Called by main."""
        wanted = {_key(allocation): allocation for allocation in allocations}
        if not wanted:
            return {}
        page = self._page[:]
        told = {page[at : at + len(_NOBODY)]: at for at in range(0, len(page), _SIZE)}
        found = {}
        for key, allocation in wanted.items():
            at = told.get(key)
            held = None if at is None else _read(page, at, allocation.gpu_uuids[:_GPUS])
            if held is not None:
                found[allocation.allocation_id, allocation.token or 0] = held
        return found


def _key(allocation: Allocation) -> bytes:
    run = f"{allocation.allocation_id}:{allocation.token or 0}"
    return hashlib.blake2b(run.encode(), digest_size=len(_NOBODY)).digest()


def _read(page: bytes, at: int, uuids: Sequence[str]) -> Held | None:
    amounts = page[at + _HEAD.size : at + _SIZE]
    if zlib.crc32(amounts) != _HEAD.unpack_from(page, at)[1]:
        return None
    ram, *gpus = (None if mb < 0 else mb for mb in _AMOUNTS.unpack(amounts))
    return Held(dict(zip(uuids, gpus, strict=False)), ram)


# --- in the process that begins a task

_gpus = GpuProcesses()
#: From when on this process may be measured closely again, on the monotonic clock.
_closely_at = 0.0


def tell(allocation: Allocation, found: Found | None) -> None:
    """Have main know what this process holds as the task begins. Never raises."""
    if found is None or threading.current_thread() is not threading.main_thread():
        return
    # A solo pool runs its tasks in the main process, and has no children: the first place is free.
    place = 0 if current_process().name == MAIN else getattr(current_process(), "index", None)
    if place is None or not (allocation.gpu_memory_mb or allocation.ram_mb):
        return
    try:
        found.tell(place, allocation, _held_now(allocation))
    except Exception:
        logger.debug("what is held as %s begins cannot be told", allocation.allocation_id, exc_info=True)


def _held_now(allocation: Allocation) -> Held:
    pids = family(os.getpid())
    gpus = {uuid: _gpu_mb(uuid, pids) for uuid in allocation.gpu_uuids} if allocation.gpu_memory_mb else {}
    return Held(gpus, _ram_mb(pids) if allocation.ram_mb else None)


def _gpu_mb(uuid: str, pids: Iterable[int]) -> int | None:
    """Where the driver's process ids mean nothing here it is 0, which main knows better than to believe."""
    if uuid.startswith(SIMULATED_UUID):
        return None
    try:
        listed = _gpus.of(uuid)
    except InventoryError as error:
        logger.debug("what is held of %s is not known: %s", uuid, error)
        return None
    return gpu_memory_mb(listed, pids)


def _there(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):  # just ended
            yield psutil.Process(pid)


def _ram_mb(pids: Sequence[int]) -> int | None:
    """To read what of a process is its own takes the kernel 10 ms per GB, and 1 ms at least: it walks its page tables.

    Short tasks would have no time for that; nor can they be watched.
    """
    global _closely_at  # noqa: PLW0603  # how often this process may do so
    resident = resident_mb(_there(pids))
    began = time.monotonic()
    if resident is None or began < _closely_at:
        return resident
    own = own_ram_mb(pids, main=os.getpid() if current_process().name == MAIN else os.getppid())
    ended = time.monotonic()
    _closely_at = ended + _RARELY * (ended - began)
    return own
