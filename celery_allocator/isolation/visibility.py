"""Which GPUs a process sees."""

from __future__ import annotations

from celery_allocator.model import DeviceInventory


def device_environment(device: DeviceInventory | None) -> dict[str, str]:
    """Variables that show a process ``device`` alone; no GPU at all for ``None`` and for a simulated one.

    They count only if set before the process first uses CUDA. The device is named by its UUID, because CUDA numbers
    devices in another order than the driver does.
    """
    visible = device.uuid if device is not None and not device.simulated else ""
    return {"CUDA_VISIBLE_DEVICES": visible}
