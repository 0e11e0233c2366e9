"""The figures of one group: added up row by row, and summed over groups."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from celery_allocator.history.outcomes import FAILURES, SUCCESS
from celery_allocator.history.percentile import nearest_rank, ordered
from celery_allocator.report.dates import Dates

#: Names of all figures, in the order in which they are shown. They are the columns of the CSV: append, do not reorder.
FIGURES = (
    *("tasks", "live", "successes", "failures", "others", "outcomes", "success_rate"),
    *("wait_median_s", "wait_p95_s", "run_median_s", "run_p95_s"),
    *("promised_gpu_hours", "used_gpu_hours", "unstarted_gpu_hours", "lost_gpu_hours", "unused_gpu_hours"),
    *("waste_gpu_hours", "promised_gb_hours", "used_gb_hours", "unstarted_gb_hours", "lost_gb_hours"),
    *("unused_gb_hours", "waste_gb_hours", "measured_gb_hours", "unplaced_gb_hours", "core_hours"),
    *("regrants", "losses", "estimates", "estimate_error_median_s", "started_by_estimate"),
    *("dates_scored", "dates_covered", "date_error_median_s", "wait_max_s"),
    *("grown", "overused", "affinity_hits", "affinity_misses"),
)


def seconds() -> array[float]:
    """A list of lengths of time, eight bytes each."""
    return array("d")


@dataclass(slots=True)
class Hours:
    """GPU memory over time, in one unit: GB-hours, or GPU-hours (a device's whole memory counts 1)."""

    promised: float = 0.0  #: held, from grant to give-back
    used: float = 0.0  #: the peak that was told, times the run time
    measured: float = 0.0  #: run time of what told its peak, at what was promised
    unstarted: float = 0.0  #: granted and not started
    lost: float = 0.0  #: runs that failed, or had to be repeated
    unused: float = 0.0  #: of good runs that told their peak: what they had asked for beyond it

    @property
    def waste(self) -> float:
        """Its three parts; no time is in two of them."""
        return self.unstarted + self.lost + self.unused

    def add(self, other: Hours, share: float = 1.0) -> None:
        """Add another's, each times ``share``."""
        self.promised += other.promised * share
        self.used += other.used * share
        self.measured += other.measured * share
        self.unstarted += other.unstarted * share
        self.lost += other.lost * share
        self.unused += other.unused * share


@dataclass
class Figures:
    """Counts, lengths of time and hours of one group. See ``docs/howto/reports.md``."""

    tasks: int = 0
    live: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    waits: array[float] = field(default_factory=seconds)
    runs: array[float] = field(default_factory=seconds)
    estimate_errors: array[float] = field(default_factory=seconds)
    gb_hours: Hours = field(default_factory=Hours)
    gpu_hours: Hours = field(default_factory=Hours)
    #: GB-hours held on devices whose memory is not known: they are in no GPU-hours.
    unplaced: float = 0.0
    core_hours: float = 0.0
    regrants: int = 0
    losses: int = 0
    grown: int = 0
    overused: int = 0
    affinity_hits: int = 0
    affinity_misses: int = 0
    dates: Dates = field(default_factory=Dates)

    def add(self, other: Figures) -> None:
        """Add another group's."""
        self.tasks += other.tasks
        self.live += other.live
        self.outcomes.update(other.outcomes)
        self.waits.extend(other.waits)
        self.runs.extend(other.runs)
        self.estimate_errors.extend(other.estimate_errors)
        self.gb_hours.add(other.gb_hours)
        self.gpu_hours.add(other.gpu_hours)
        self.unplaced += other.unplaced
        self.core_hours += other.core_hours
        self.regrants += other.regrants
        self.losses += other.losses
        self.grown += other.grown
        self.overused += other.overused
        self.affinity_hits += other.affinity_hits
        self.affinity_misses += other.affinity_misses
        self.dates.add(other.dates)

    @property
    def successes(self) -> int:
        """Ended well."""
        return sum(self.outcomes[name] for name in SUCCESS)

    @property
    def failures(self) -> int:
        """Ended wrong."""
        return sum(self.outcomes[name] for name in FAILURES)

    def as_dict(self) -> dict[str, Any]:
        """All of :data:`FIGURES`, in their order; ``None`` is what is not known."""
        waits, runs, errors = (ordered(values) for values in (self.waits, self.runs, self.estimate_errors))
        good, bad = self.successes, self.failures
        told: dict[str, Any] = {
            "tasks": self.tasks,
            "live": self.live,
            "successes": good,
            "failures": bad,
            "others": self.tasks - good - bad,
            "outcomes": {name: self.outcomes[name] for name in sorted(self.outcomes)},
            "success_rate": good / (good + bad) if good + bad else None,
            "wait_median_s": nearest_rank(waits, 50),
            "wait_p95_s": nearest_rank(waits, 95),
            "run_median_s": nearest_rank(runs, 50),
            "run_p95_s": nearest_rank(runs, 95),
            **_hours(self.gpu_hours, "gpu_hours", known=not self.unplaced or self.gpu_hours.promised > 0),
            **_hours(self.gb_hours, "gb_hours", known=True),
            "measured_gb_hours": self.gb_hours.measured,
            "unplaced_gb_hours": self.unplaced,
            "core_hours": self.core_hours,
            "regrants": self.regrants,
            "losses": self.losses,
            "estimates": len(errors),
            "estimate_error_median_s": nearest_rank(errors, 50),
            "started_by_estimate": sum(1 for error in errors if error <= 0) / len(errors) if errors else None,
            **self.dates.as_dict(),
            "wait_max_s": waits[-1] if waits else None,
            **{name: getattr(self, name) for name in ("grown", "overused", "affinity_hits", "affinity_misses")},
        }
        return {name: _rounded(told[name]) for name in FIGURES}


def _hours(hours: Hours, unit: str, *, known: bool) -> dict[str, float | None]:
    names = ("promised", "used", "unstarted", "lost", "unused", "waste")
    told: dict[str, float | None] = {f"{name}_{unit}": getattr(hours, name) if known else None for name in names}
    if not hours.measured:
        told[f"used_{unit}"] = None
    return told


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
