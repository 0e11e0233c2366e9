"""What came of the dates that were promised at submit."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_allocator.history.dates import Kept
from celery_allocator.history.percentile import nearest_rank, ordered

#: What dates are told by, whatever else the report is grouped by.
BY = ("day", "tenant", "name")


@dataclass
class Dates:
    """Of one group: starts of what had been promised one. ``told``: with a p90; ``covered``: of these, by then."""

    told: int = 0
    covered: int = 0
    #: Distances of actual and estimated start, in seconds.
    errors: array[float] = field(default_factory=lambda: array("d"))

    def score(self, promise: Kept) -> None:
        """One more start."""
        self.errors.append(abs(promise.error_s))
        if promise.covered is not None:
            self.told += 1
            self.covered += promise.covered

    def add(self, other: Dates) -> None:
        """Add another group's."""
        self.told += other.told
        self.covered += other.covered
        self.errors.extend(other.errors)

    def as_dict(self) -> dict[str, Any]:
        """``dates_scored``: how many; ``dates_covered``: share of them at or before their p90 (aim: 0.9)."""
        half = nearest_rank(ordered(self.errors), 50)
        return {
            "dates_scored": len(self.errors),
            "dates_covered": round(self.covered / self.told, 6) if self.told else None,
            "date_error_median_s": None if half is None else round(half, 6),
        }


class DatesBy:
    """The same by each of :data:`BY`. Groups without a date are not there."""

    def __init__(self) -> None:
        self.groups: Mapping[str, dict[str, Dates]] = {dimension: {} for dimension in BY}

    def score(self, promise: Kept, **values: str) -> None:
        """One more start; ``values``: its day, tenant and name."""
        for dimension, groups in self.groups.items():
            groups.setdefault(values[dimension], Dates()).score(promise)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """By dimension and value, in alphabetical order."""
        return {
            dimension: {value: dates.as_dict() for value, dates in sorted(groups.items())}
            for dimension, groups in self.groups.items()
        }
