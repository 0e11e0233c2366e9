"""Running tasks that use more than they were promised, look by look."""

from __future__ import annotations

from collections.abc import Iterator

from celery_allocator.metrics.tallies import Tallies
from celery_allocator.overview import Overview, Running

#: What is promised and measured: its name, and those of the requirement and of the measurements (MB).
RESOURCES = (("gpu_memory", "gpu_memory_mb", "gpu_memory_over_mb"), ("ram", "ram_mb", "ram_over_mb"))

#: Node, device, resource.
Place = tuple[str, str, str]


def overuse(overview: Overview) -> dict[Place, list[int]]:
    """By place, how many MB over its promise each task is that is over it. Places without any are there, too.

    As its worker judges that, else as it was measured. What was not promised at all (0: not accounted) cannot be
    overused.
    """
    found: dict[Place, list[int]] = {}
    for device in overview.cluster.devices:
        for resource, *_ in RESOURCES:
            if device.is_gpu or resource == "ram":
                found[device.node, device.device_id, resource] = []
    for _, place, excess in _over(overview):
        found.setdefault(place, []).append(excess)
    return found


class Overusing:
    """Counts how often a task begins to use more than its promise."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        self._over: set[tuple[str, Place]] = set()

    def look(self, overview: Overview) -> None:
        """The next look."""
        for place in overuse(overview):
            self._tallies.add("overuse_episodes_total", *place, amount=0)
        over = {(task, place) for task, place, _ in _over(overview)}
        for _, place in over - self._over:
            self._tallies.add("overuse_episodes_total", *place)
        self._over = over


def _over(overview: Overview) -> Iterator[tuple[str, Place, int]]:
    """Allocation, place, and by how many MB."""
    for one in overview.running:
        for resource, field, over in RESOURCES:
            excess = _excess(one, field, over)
            if excess > 0:
                held = one.allocation
                yield held.allocation_id, (held.node or "", held.device_id or "", resource), excess


def _excess(one: Running, field: str, over: str) -> int:
    judged: int | None = getattr(one.use, over, None)
    if judged is not None:
        return judged
    promised: int = getattr(one.allocation, field)
    used: int | None = None if one.use is None else getattr(one.use, field)
    return used - promised if used is not None and promised else 0
