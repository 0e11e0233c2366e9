"""What the worker's main process has sampled of each running task, for the child that ends it and tells the ledger.

The meter sees what a child cannot see at the end: memory that was given back before, and that of processes the task
started. Main writes the most of each task into a page of memory that its children share (as ``fence.py`` does).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterable

from celery_allocator.model import TaskUse

#: Which allocation, and the most that was seen of GPU memory and RAM in MB; -1: never told.
_SLOT = struct.Struct("=16sqq")
_AMOUNTS = struct.Struct("=qq")
_KEY_BYTES = 16
_NOBODY = bytes(_KEY_BYTES)
_UNKNOWN = -1
#: Tasks that run at a time in one worker; of more, some are not told.
_SLOTS = 1024


class Sampled:
    """Made before the pool forks; written by main, read by its children. Nothing is locked: a torn figure is rare, and
    one of many.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _SLOT.size * _SLOTS)
        self._slots: dict[bytes, int] = {}
        self._free = list(range(_SLOTS - 1, -1, -1))

    def note(self, tasks: Iterable[TaskUse]) -> None:
        """What the tasks that run use now; what others used is forgotten. Called by main."""
        seen = {_key(task.allocation_id): task for task in tasks}
        for key in self._slots.keys() - seen.keys():
            slot = self._slots.pop(key)
            _SLOT.pack_into(self._page, slot * _SLOT.size, _NOBODY, _UNKNOWN, _UNKNOWN)
            self._free.append(slot)
        for key, task in seen.items():
            if key not in self._slots:
                if not self._free:
                    continue
                self._slots[key] = self._free.pop()
                _SLOT.pack_into(self._page, self._slots[key] * _SLOT.size, key, _UNKNOWN, _UNKNOWN)
            at = self._slots[key] * _SLOT.size + _KEY_BYTES
            before = _AMOUNTS.unpack_from(self._page, at)
            now = (task.gpu_memory_mb, task.ram_mb)
            most = [max(old, _UNKNOWN if new is None else new) for old, new in zip(before, now, strict=True)]
            _AMOUNTS.pack_into(self._page, at, *most)

    def forget(self, allocation_id: str) -> None:
        """It begins (again) in this process: what was sampled before is not of this run."""
        at = self._find(allocation_id)
        if at is not None:
            _AMOUNTS.pack_into(self._page, at, _UNKNOWN, _UNKNOWN)

    def of(self, allocation_id: str) -> tuple[int | None, int | None]:
        """The most GPU memory and RAM that was seen of it, in MB; ``None``: not told."""
        at = self._find(allocation_id)
        if at is None:
            return None, None
        gpu, ram = _AMOUNTS.unpack_from(self._page, at)
        return (None if gpu < 0 else gpu), (None if ram < 0 else ram)

    def _find(self, allocation_id: str) -> int | None:
        key, at = _key(allocation_id), -1
        while True:
            at = self._page.find(key, at + 1)
            if at < 0:
                return None
            if at % _SLOT.size == 0:
                return at + _KEY_BYTES


def _key(allocation_id: str) -> bytes:
    return hashlib.blake2b(allocation_id.encode(), digest_size=_KEY_BYTES).digest()
