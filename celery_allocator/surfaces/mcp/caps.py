"""How much a caller may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from celery_allocator.allocating.request import Request
from celery_allocator.errors import CapExceeded


@dataclass(frozen=True)
class Caps:
    """The most that a caller may ask for in one call, and have alive at once. ``None``: no bound but the usual ones.

    Sizes in MB, ``ttl_s`` in seconds. ``allocations``: how many may live at once, those in line included.
    """

    gpu_memory_mb: int | None = None
    cpu_cores: int | None = None
    ram_mb: int | None = None
    priority: int | None = None
    ttl_s: float | None = None
    allocations: int | None = None

    def ttl(self, asked: float | None, default: float) -> float | None:
        """The TTL to ask for: as asked; where nothing was, the default, made to fit."""
        return min(default, self.ttl_s) if asked is None and self.ttl_s is not None else asked

    def check(self, request: Request) -> None:
        """Raise :class:`CapExceeded` for the first thing that is more than it may be.

        The requirements are the whole ones, with what the task type gives.
        """
        for cap in ("gpu_memory_mb", "cpu_cores", "ram_mb", "priority"):
            self._check(cap, getattr(request.requirements, cap))
        self._check("ttl_s", request.ttl_s)

    def _check(self, cap: str, asked: float) -> None:
        most = getattr(self, cap)
        if most is not None and asked > most:
            raise CapExceeded(cap, asked, most)


#: Names of the caps, in their order.
CAPS = tuple(field.name for field in fields(Caps))
