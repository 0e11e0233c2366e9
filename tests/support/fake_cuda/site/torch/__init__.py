"""PyTorch 2.11, as far as the tests use it: an allocator with a cap, and a number of threads."""

from __future__ import annotations

import ctypes
import os
import re


class OutOfMemoryError(RuntimeError):
    """As raised above the cap, and where the GPU is full."""


class AcceleratorError(RuntimeError):
    """As raised where there is no room for the context."""

    error_code: int = 0


_threads = [os.cpu_count() or 1]


def get_num_threads() -> int:
    return _threads[0]


def set_num_threads(count: int) -> None:
    _threads[0] = count


class _Cuda:
    """``torch.cuda`` with one GPU of :attr:`total_mb`."""

    total_mb = int(os.environ.get("FAKE_TORCH_TOTAL_MB", "8192"))

    def __init__(self) -> None:
        self._initialised = False
        self._fraction = 1.0
        self.held_mb = 0
        self.emptied = 0

    def is_initialized(self) -> bool:
        return self._initialised

    def is_available(self) -> bool:
        return bool(os.environ.get("CUDA_VISIBLE_DEVICES"))

    def device_count(self) -> int:
        return len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))

    def init(self) -> None:
        if not self._initialised:
            ctypes.CDLL("libcuda.so.1").cuInit(0)
            told = re.search(r"per_process_memory_fraction:([\d.]+)", os.environ.get("PYTORCH_ALLOC_CONF", ""))
            self._fraction = float(told[1]) if told else 1.0
            self._initialised = True

    def get_per_process_memory_fraction(self, device: int = 0) -> float:
        self.init()
        return self._fraction

    def set_per_process_memory_fraction(self, fraction: float, device: int = 0) -> None:
        self.init()
        self._fraction = fraction

    def empty_cache(self) -> None:
        self.emptied += 1
        self.held_mb = 0

    def take(self, mb: int) -> int:
        """Allocate; returns MB that this process may have at most."""
        self.init()
        most = int(self.total_mb * self._fraction)
        self.held_mb = min(most, mb)
        if mb > most:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {mb}.00 MiB.")
        return most


cuda = _Cuda()
