"""What a running task may touch: the cores it is pinned to and the device it sees."""

from __future__ import annotations

from celery_allocator.isolation.cores import Previous, pin, pinned, unpin
from celery_allocator.isolation.visibility import device_environment

__all__ = ["Previous", "device_environment", "pin", "pinned", "unpin"]
