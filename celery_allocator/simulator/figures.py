"""What a replayed trace comes to, in figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.simulator.replay import Replayed, TaskRun

#: The bound of the bounded slowdown, in seconds.
BOUND_S = 10.0
#: Part of the tasks that counts as the largest.
LARGEST = 0.05


@dataclass(frozen=True)
class Waits:
    """Seconds between submission and start."""

    mean_s: float
    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True)
class OfTenant:
    """What the tasks of one tenant came to."""

    tasks: int
    waits: Waits | None
    slowdown: float | None


@dataclass(frozen=True)
class Dates:
    """How true the dates were that waiting tasks were told at submission.

    ``scored``: tasks that waited and were told a date; ``p90_coverage``: share of those told a p90 that started by
    then; errors: medians of the seconds between date and start. The naive rule: position × mean run time of what has
    ended ÷ tasks running. ``None``: nothing to score.
    """

    scored: int
    p90_coverage: float | None
    median_error_s: float | None
    naive_median_error_s: float | None

    @property
    def error_over_naive(self) -> float | None:
        """Median error over that of the naive rule, on the same tasks."""
        if self.median_error_s is None or not self.naive_median_error_s:
            return None
        return self.median_error_s / self.naive_median_error_s


@dataclass(frozen=True)
class Figures:
    """All figures of a simulation; times in seconds, the others shares of 1.

    ``never``: tasks no node could hold; ``unstarted``: tasks that still wait at the end. ``slowdown``: mean bounded
    slowdown, max(1, (wait + run) / max(run, 10 s)). ``makespan_s``: first submission to last ending. Utilisation and
    fragmentation: means over time. ``waits_largest``: of the largest 5 % of the tasks, and those as large as the
    smallest of these, by the largest of their shares of the cluster's GPU memory, cores and RAM. ``tenants``: empty
    where no task has one.
    """

    tasks: int
    never: int
    unstarted: int
    waited: int
    waits: Waits | None
    waits_largest: Waits | None
    slowdown: float | None
    makespan_s: float
    gpu_memory_utilisation: float | None
    cpu_utilisation: float
    fragmentation: float | None
    dates: Dates
    tenants: dict[str, OfTenant]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        found = asdict(self)
        found["dates"]["error_over_naive"] = self.dates.error_over_naive
        return found


def figures(replayed: Replayed) -> Figures:
    """The figures of a replayed trace."""
    runs = replayed.runs
    started = [run for run in runs if run.start_s is not None]
    largest = _largest(replayed, started)
    makespan = max((run.end_s or 0.0 for run in started), default=0.0) - min(
        (run.task.submit_s for run in runs), default=0.0
    )
    cluster = replayed.cluster
    gpu_mb_s, core_s = _areas(replayed)
    return Figures(
        tasks=len(runs),
        never=sum(run.never for run in runs),
        unstarted=sum(run.start_s is None and not run.never for run in runs),
        waited=sum((run.wait_s or 0.0) > 0 for run in started),
        waits=_waits(started),
        waits_largest=_waits(largest),
        slowdown=_slowdown(started),
        makespan_s=max(0.0, makespan),
        gpu_memory_utilisation=_share(gpu_mb_s, cluster.gpu_memory_mb * makespan) if cluster.gpu_memory_mb else None,
        cpu_utilisation=_share(core_s, cluster.cpu_cores * makespan),
        fragmentation=statistics.fmean(replayed.fragmentation) if replayed.fragmentation else None,
        dates=dates(runs),
        tenants=_tenants(runs),
    )


def bounded_slowdown(run: TaskRun) -> float:
    """How many times longer a started task took than it ran; lengths below 10 s count as 10 s. At least 1.

    After Feitelson et al., "Theory and Practice in Parallel Job Scheduling", JSSPP 1997.
    """
    length = run.task.duration_s
    return max(1.0, ((run.wait_s or 0.0) + length) / max(length, BOUND_S))


def dates(runs: Sequence[TaskRun]) -> Dates:
    """The score of the dates told to these tasks."""
    scored = [run for run in runs if run.start_s is not None and run.p50_s is not None]
    with_p90 = [run for run in scored if run.p90_s is not None]
    compared = [run for run in scored if run.naive_s is not None]
    covered = sum((run.start_s or 0.0) <= (run.p90_s or 0.0) for run in with_p90)
    return Dates(
        scored=len(scored),
        p90_coverage=covered / len(with_p90) if with_p90 else None,
        median_error_s=_median_error(compared, [run.p50_s for run in compared]),
        naive_median_error_s=_median_error(compared, [run.naive_s for run in compared]),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``ordered`` (ascending, not empty) do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _slowdown(started: Sequence[TaskRun]) -> float | None:
    return statistics.fmean(bounded_slowdown(run) for run in started) if started else None


def _tenants(runs: Sequence[TaskRun]) -> dict[str, OfTenant]:
    names = sorted({run.task.requirements.tenant for run in runs})
    if names in ([], [""]):
        return {}
    found = {}
    for name in names:
        theirs = [run for run in runs if run.task.requirements.tenant == name]
        started = [run for run in theirs if run.start_s is not None]
        found[name] = OfTenant(len(theirs), _waits(started), _slowdown(started))
    return found


def _largest(replayed: Replayed, started: Sequence[TaskRun]) -> list[TaskRun]:
    sizes = {id(run): replayed.cluster.share(run.task.requirements) for run in started}
    descending = sorted(sizes.values(), reverse=True)
    least = descending[math.ceil(LARGEST * len(descending)) - 1] if descending else 0.0
    return [run for run in started if sizes[id(run)] >= least]


def _waits(runs: Sequence[TaskRun]) -> Waits | None:
    waits = sorted(run.wait_s or 0.0 for run in runs)
    if not waits:
        return None
    return Waits(statistics.fmean(waits), quantile(waits, 0.5), quantile(waits, 0.95), waits[-1])


def _areas(replayed: Replayed) -> tuple[float, float]:
    """MB-seconds of GPU memory and core-seconds in use."""
    gpu = cores = 0.0
    moments = replayed.moments
    for i in range(1, len(moments)):
        length = moments[i].at_s - moments[i - 1].at_s
        gpu += moments[i - 1].gpu_used_mb * length
        cores += moments[i - 1].cores_used * length
    return gpu, cores


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _median_error(runs: Sequence[TaskRun], told: Sequence[float | None]) -> float | None:
    errors = [abs((date or 0.0) - (run.start_s or 0.0)) for run, date in zip(runs, told, strict=True)]
    return statistics.median(errors) if errors else None
