"""How the queue of a device is called."""

from __future__ import annotations


def queue_name(pool: str, node: str, device_id: str) -> str:
    """Name of a device's queue: ``allocator.<pool>.<node>.<device>``."""
    return f"allocator.{pool}.{node}.{device_id}"
