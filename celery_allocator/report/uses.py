"""What was promised to tasks, and what they used of it, by task name."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

from celery_allocator.history.percentile import nearest_rank, ordered


@dataclass
class Peaks:
    """Of one resource: what was promised to runs that told what they used, and that; in MB, or cores."""

    promised: array[float] = field(default_factory=lambda: array("d"))
    used: array[float] = field(default_factory=lambda: array("d"))

    def note(self, promised: float | None, used: float | None) -> None:
        """One more run; not told, or not promised: it does not count."""
        if used is not None and promised:
            self.promised.append(promised)
            self.used.append(used)

    def as_dict(self) -> dict[str, Any]:
        """``runs``: how many told it. ``used_share``: Σ used ÷ Σ promised. The others: of single runs."""
        used = ordered(self.used)
        return {
            "runs": len(used),
            "promised_max": max(self.promised, default=None),
            "used_median": nearest_rank(used, 50),
            "used_max": used[-1] if used else None,
            "used_share": round(sum(used) / sum(self.promised), 6) if used else None,
        }


@dataclass
class Use:
    """Of one task name."""

    gpu_memory_mb: Peaks = field(default_factory=Peaks)
    ram_mb: Peaks = field(default_factory=Peaks)
    cpu_cores: Peaks = field(default_factory=Peaks)
    #: How often a claim grew after the task ran out of GPU memory; and tasks that used more than was promised.
    grown: int = 0
    overused: int = 0

    @property
    def told(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.gpu_memory_mb.used or self.ram_mb.used or self.cpu_cores.used or self.grown or self.overused)

    def note(self, row: Any) -> None:
        """One more allocation that ended."""
        self.gpu_memory_mb.note(row.gpu_memory_mb, row.peak_gpu_memory_mb)
        self.ram_mb.note(row.ram_mb, row.peak_ram_mb)
        self.cpu_cores.note(row.cpu_cores, row.cpu_cores_used)
        self.grown += row.grown or 0
        self.overused += overused(row)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        peaks = {name: getattr(self, name).as_dict() for name in ("gpu_memory_mb", "ram_mb", "cpu_cores")}
        return {**peaks, "grown": self.grown, "overused": self.overused}


class Uses:
    """By task name. Names of which nothing is known are not told."""

    def __init__(self) -> None:
        self._names: dict[str, Use] = {}

    def note(self, row: Any) -> None:
        """One more allocation that ended."""
        self._names.setdefault(row.task_name, Use()).note(row)

    @property
    def by_name(self) -> dict[str, Use]:
        """What is told, in alphabetical order."""
        return {name: use for name, use in sorted(self._names.items()) if use.told}

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {name: use.as_dict() for name, use in self.by_name.items()}


def overused(row: Any) -> bool:
    """Whether a task was found to use more than it was promised."""
    return row.overuse_gpu_memory_mb is not None or row.overuse_ram_mb is not None
