"""Devices that have room for something that waits and do not get it, look by look.

The ledger grants what fits in the same step that frees it, so a stretch that two looks see has a cause: granting is
paused after a change of the server, or something is wrong. As for the quality gate's ``idle_gap``, a pause by an
operator does not count.
"""

from __future__ import annotations

from celery_allocator.ledger import Line
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.model import ClusterState, DeviceState, NodeState, Shape


class Idling:
    """Measures such stretches, by the ledger's clock."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        #: When a device was first seen so, and last.
        self._since: dict[str, tuple[float, float]] = {}

    def look(self, cluster: ClusterState, line: Line) -> None:
        """The next look. ``line`` was read after ``cluster``: what was granted in between is missing there."""
        idle = idle_devices(cluster, line)
        for key in self._since.keys() - idle:
            first, last = self._since.pop(key)
            if last > first:
                self._tallies.observe("idle_gap_seconds", cluster.at - first)
        for key in idle:
            first, last = self._since.get(key, (cluster.at, cluster.at))
            # As it goes on, so that one that does not end is seen.
            self._tallies.add("idle_device_seconds_total", amount=cluster.at - last)
            self._since[key] = (first, cluster.at)


def idle_devices(cluster: ClusterState, line: Line) -> set[str]:
    """Devices that are ready and served and have room for a task in line."""
    if cluster.paused == "stopped":
        return set()
    tasks = [shape for shape in line.shapes if shape.slot]
    return {
        device.key
        for node in cluster.nodes
        for device in node.devices
        if _serves(node, device) and any(_has_room(node, device, shape) for shape in tasks)
    }


def _serves(node: NodeState, device: DeviceState) -> bool:
    return (
        node.state == device.state == "ready"
        and device.worker is not None
        and not device.closing
        and device.slots_free > 0
    )


def _has_room(node: NodeState, device: DeviceState, shape: Shape) -> bool:
    return (
        not shape.bound
        and device.is_gpu == shape.on_gpu
        and device.memory_free_mb >= shape.gpu_memory_on(device.memory_mb)
        and len(node.cpu_cores_free) >= shape.cpu_cores
        and node.ram_free_mb >= shape.ram_mb
    )
