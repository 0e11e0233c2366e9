"""What this host has, and what of it is in use: core ids, RAM and GPUs, real or simulated."""

from __future__ import annotations

from dataclasses import replace

from celery_allocator.inventory import host, nvml, simulated
from celery_allocator.inventory.host import ram_used_mb
from celery_allocator.inventory.nvml import GpuUse, read_use
from celery_allocator.model import DeviceInventory, NodeInventory
from celery_allocator.settings import Settings

__all__ = ["GpuUse", "discover", "ram_used_mb", "read_use"]


def discover(settings: Settings) -> NodeInventory:
    """What this host offers to tasks under ``settings``. Sizes in MB (2**20 bytes).

    Raises :class:`~celery_allocator.errors.SettingsError` for a setting that cannot be met and
    :class:`~celery_allocator.errors.InventoryError` for devices that cannot be read as asked.
    """
    node = host.node_name(settings.node)
    cores = host.cores(settings)
    offered = set(cores)
    return NodeInventory(
        node=node,
        cpu_cores=cores,
        labels=settings.labels,
        ram_mb=host.ram_mb(settings),
        # A GPU may be near cores that the cgroup or a reservation keeps from us.
        devices=tuple(
            replace(device, cpu_affinity=tuple(core for core in device.cpu_affinity if core in offered))
            for device in _devices(settings.devices, node)
        ),
    )


def _devices(spec: str, node: str) -> tuple[DeviceInventory, ...]:
    text = spec.strip()
    if text.lower() == "none":
        return ()
    if text.lower() == "auto":
        return nvml.all_devices()
    if text.lower().startswith(simulated.PREFIX):
        return simulated.devices(text, node)
    return nvml.named_devices(text)
