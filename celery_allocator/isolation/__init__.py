"""What a running task may touch: the cores it is pinned to, the devices it sees, and how much it takes of them."""

from __future__ import annotations

from celery_allocator.isolation.caps import ALLOWANCE_MB, Claimed, cap_gpu_memory, kept_cap_mb
from celery_allocator.isolation.cores import Previous, pin, pinned, unpin
from celery_allocator.isolation.cuda import cuda_is_initialised
from celery_allocator.isolation.exhausted import free_gpu_memory, is_out_of_gpu_memory
from celery_allocator.isolation.threads import limit_threads
from celery_allocator.isolation.visibility import device_environment, show_gpus

__all__ = [
    "ALLOWANCE_MB",
    "Claimed",
    "Previous",
    "cap_gpu_memory",
    "cuda_is_initialised",
    "device_environment",
    "free_gpu_memory",
    "is_out_of_gpu_memory",
    "kept_cap_mb",
    "limit_threads",
    "pin",
    "pinned",
    "show_gpus",
    "unpin",
]
