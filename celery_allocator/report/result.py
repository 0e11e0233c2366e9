"""A finished report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery_allocator.history.window import Window
from celery_allocator.report.dates import DatesBy
from celery_allocator.report.figures import Figures
from celery_allocator.report.series import Series
from celery_allocator.report.uses import Uses


@dataclass(frozen=True)
class Group:
    """One group: its values of the dimensions (``None``: it has none, a device for one that was never granted)."""

    key: tuple[str | None, ...]
    figures: Figures


@dataclass(frozen=True)
class GapSpan:
    """Events that are missing: between which moments, and how many (``None``: not known)."""

    start: datetime
    end: datetime
    entries: int | None


@dataclass(frozen=True)
class Report:
    """What a pool's history of a window comes to, by the dimensions of ``by``. Largest groups first."""

    pool: str
    window: Window
    made_at: datetime
    by: tuple[str, ...]
    groups: tuple[Group, ...]
    totals: Figures
    series: Series
    gaps: tuple[GapSpan, ...]
    dates: DatesBy
    uses: Uses

    @property
    def unit(self) -> str:
        """The unit of hours to show: "gpu_hours", or "gb_hours" where the memory of some device is not known."""
        return "gb_hours" if self.totals.unplaced else "gpu_hours"

    def as_dict(self) -> dict[str, Any]:
        """As the JSON shows it."""
        return {
            "pool": self.pool,
            "since": iso(self.window.start),
            "until": iso(self.window.end),
            "made_at": iso(self.made_at),
            "by": list(self.by),
            "groups": [
                {**dict(zip(self.by, group.key, strict=True)), **group.figures.as_dict()} for group in self.groups
            ],
            "totals": self.totals.as_dict(),
            "dates": self.dates.as_dict(),
            "uses": self.uses.as_dict(),
            "series": self.series.as_dict(),
            "gaps": [{"since": iso(g.start), "until": iso(g.end), "entries": g.entries} for g in self.gaps],
        }


def iso(at: datetime) -> str:
    """ISO 8601 in UTC, with milliseconds where there are any."""
    text = at.isoformat(timespec="milliseconds" if at.microsecond else "seconds")
    return text.replace("+00:00", "Z")
