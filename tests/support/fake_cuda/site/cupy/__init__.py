"""CuPy, as far as the tests use it: a pool with a limit."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

from cupy import cuda


class _Pool:
    """The default memory pool of one GPU."""

    def __init__(self) -> None:
        self._limit: int | None = None
        self.freed = 0

    def get_limit(self) -> int:
        if self._limit is None:  # read at the first use
            ctypes.CDLL("libcuda.so.1").cuInit(0)
            self._limit = int(os.environ.get("CUPY_GPU_MEMORY_LIMIT", "0"))
        return self._limit

    def set_limit(self, size: int) -> None:
        self.get_limit()
        self._limit = size

    def free_all_blocks(self) -> None:
        self.freed += 1

    def take(self, mb: int) -> int:
        """Allocate; returns the limit in MB."""
        limit = self.get_limit()
        if limit and mb * 2**20 > limit:
            raise cuda.memory.OutOfMemoryError(
                f"Out of memory allocating {mb * 2**20} bytes (allocated so far: 0 bytes"
            )
        return limit // 2**20


_pool, _pinned = _Pool(), SimpleNamespace(free_all_blocks=lambda: None)


def get_default_memory_pool() -> _Pool:
    return _pool


def get_default_pinned_memory_pool() -> SimpleNamespace:
    return _pinned
