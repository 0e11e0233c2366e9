"""NVIDIA GPUs by NVML: what is there, where it sits, what is in use of it, and whether it is well."""

from __future__ import annotations

from celery_allocator.inventory.nvml.devices import all_devices, named_devices
from celery_allocator.inventory.nvml.health import GpuHealth, GpuWatch, read_health
from celery_allocator.inventory.nvml.topology import links
from celery_allocator.inventory.nvml.use import GpuProcesses, GpuUse, read_use
from celery_allocator.inventory.nvml.xids import FATAL

__all__ = [
    "FATAL",
    "GpuHealth",
    "GpuProcesses",
    "GpuUse",
    "GpuWatch",
    "all_devices",
    "links",
    "named_devices",
    "read_health",
    "read_use",
]
