"""What this host has, and what of it is in use: core ids, RAM and GPUs, real or simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import host, nvml, simulated
from celery_allocator.inventory.host import ram_used_mb
from celery_allocator.inventory.nvml import FATAL, GpuHealth, GpuProcesses, GpuUse, GpuWatch, read_health, read_use
from celery_allocator.inventory.simulated import UUID_PREFIX as SIMULATED_UUID
from celery_allocator.model import DeviceInventory, Link, NodeInventory
from celery_allocator.settings import Settings

__all__ = [
    "FATAL",
    "SIMULATED_UUID",
    "GpuHealth",
    "GpuProcesses",
    "GpuUse",
    "GpuWatch",
    "cores_now",
    "discover",
    "ram_used_mb",
    "read_health",
    "read_use",
]


def discover(settings: Settings) -> NodeInventory:
    """What this host offers to tasks under ``settings``. Sizes in MB (2**20 bytes).

    Raises :class:`~celery_allocator.errors.SettingsError` for a setting that cannot be met and
    :class:`~celery_allocator.errors.InventoryError` for devices that cannot be read as asked.
    """
    node = host.node_name(settings.node)
    cores = host.cores(settings)
    offered = set(cores)
    devices, links = _devices(settings.devices, node)
    return NodeInventory(
        node=node,
        cpu_cores=cores,
        labels=settings.labels,
        ram_mb=host.ram_mb(settings),
        # A GPU may be near cores that the cgroup or a reservation keeps from us.
        devices=tuple(
            replace(
                device,
                memory_mb=_offered(device, settings.gpu_margin_mb),
                cpu_affinity=tuple(core for core in device.cpu_affinity if core in offered),
            )
            for device in devices
        ),
        links=links,
    )


def cores_now(settings: Settings) -> tuple[int, ...]:
    """Core ids that this host offers to tasks by now: its mask and its control group may have changed.

    Raises :class:`~celery_allocator.errors.SettingsError` if a reservation leaves none.
    """
    return host.cores(settings)


def _offered(device: DeviceInventory, margin_mb: int) -> int:
    """What of a GPU's memory tasks may claim."""
    if margin_mb >= device.memory_mb:
        raise SettingsError(
            f"allocator_gpu_margin_mb (ALLOCATOR_GPU_MARGIN_MB) is {margin_mb}, but {device.device_id} has "
            f"{device.memory_mb} MB in all"
        )
    return device.memory_mb - margin_mb


def _devices(spec: str, node: str) -> tuple[tuple[DeviceInventory, ...], Mapping[tuple[str, str], Link]]:
    """The devices, and how near they are to each other."""
    text = spec.strip()
    if text.lower() == "none":
        return (), {}
    if text.lower().startswith(simulated.PREFIX):
        return simulated.devices(text, node), simulated.links(text)
    devices = nvml.all_devices() if text.lower() == "auto" else nvml.named_devices(text)
    return devices, nvml.links(devices)
