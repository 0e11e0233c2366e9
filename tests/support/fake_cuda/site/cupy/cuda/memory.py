"""``cupy.cuda.memory``."""

from __future__ import annotations


class OutOfMemoryError(MemoryError):
    """As raised above the pool's limit, and where the GPU is full."""
