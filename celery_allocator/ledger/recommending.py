"""What tasks turned out to use, and what they had better ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.ledger import wire
from celery_allocator.ledger.access import Access
from celery_allocator.model import Peaks

#: Measured runs from which on a suggestion is made: as few as run times are relied on.
FEWEST_RUNS = 3
#: Declared above so many times the suggestion is told to be much too large.
WASTEFUL = 2.0
#: Below so many MB (cores) of difference it is not.
_SPARED_MB, _SPARED_CORES = 256, 1
#: Suggestions of MB are rounded up to these: below 1 GB to the first.
_STEP_MB, _LARGE_STEP_MB, _LARGE_MB = 64, 256, 1024
#: So much of a core more than a whole number of them is the system's noise, and no reason for one more.
_NOISE_CORES = 0.15
#: A task that keeps this share of its cores busy may be held up by them: it is pinned, so it cannot show more.
_BUSY = 0.95

TOO_SMALL, TOO_LARGE, NOT_DECLARED, BUSY = "too small", "much too large", "not declared", "all busy"


@dataclass(frozen=True)
class Usage:
    """What the runs of a task used of one resource, in MB or cores.

    ``declared``: what the last one asked for. ``runs``: how many were measured; ``p50``, ``p99``: half of them used at
    most so much, 99 of a hundred (within 5 %; the newest count more); ``most``: the most that one of the last 500 to
    1000 used. ``suggested``: what to ask for; ``None`` below :data:`FEWEST_RUNS`. ``verdict``: what is wrong with what
    is declared: ``"too small"``, ``"much too large"``, ``"not declared"``, ``"all busy"`` (cores); empty: nothing.
    """

    declared: float
    runs: int
    p50: float
    p99: float
    most: float
    suggested: int | None
    verdict: str


@dataclass(frozen=True)
class Recommendation:
    """What the runs of a task name (and size) used, and what it had better ask for; ``None``: never measured.

    ``runs``: measured runs that succeeded. ``at``: when one was last told, in seconds since the epoch by the ledger's
    clock. ``gpu_memory_mb`` is of one device.
    """

    task_name: str
    size: str
    runs: int
    at: float
    gpu_memory_mb: Usage | None
    ram_mb: Usage | None
    cpu_cores: Usage | None

    @property
    def suggested(self) -> dict[str, int]:
        """The requirements that it had better ask for, as far as that is known."""
        told = {name: getattr(self, name) for name in ("gpu_memory_mb", "cpu_cores", "ram_mb")}
        return {name: usage.suggested for name, usage in told.items() if usage and usage.suggested is not None}

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {**asdict(self), "suggested": self.suggested}


@dataclass(frozen=True)
class Capacity:
    """What the known devices have: GPU memory and RAM in MB, cores of the node."""

    gpu_memory_mb: int
    cpu_cores: int
    ram_mb: int


@dataclass(frozen=True)
class Learned:
    """What is known of a few task names, and of the devices that there are; from one look."""

    recommendations: tuple[Recommendation, ...]
    devices: tuple[Capacity, ...]

    def of(self, task_name: str, size: str = "") -> Recommendation | None:
        """That of a name and size."""
        return next((r for r in self.recommendations if (r.task_name, r.size) == (task_name, size)), None)

    def usage(self, requirement: str) -> Usage | None:
        """Of the first of them, sizes before names alone, that has a suggestion for ``gpu_memory_mb``, …"""
        for one in sorted(self.recommendations, key=lambda r: not r.size):
            found: Usage | None = getattr(one, requirement)
            if found is not None and found.suggested is not None:
                return found
        return None


class Recommending(Access):
    """The methods about what tasks use."""

    def recommend(self, *task_names: str) -> tuple[Recommendation, ...]:
        """What the runs of these task names (none: of all) used, by name and size, and what to ask for.

        The suggestion for MB is the most that was seen and a share more (setting ``allocator_recommend_margin``),
        rounded up; for cores, what 99 of a hundred runs kept busy, in whole cores. Changes nothing.
        """
        known = self._looked_up()
        chosen = [r for r in known.recommendations if not task_names or r.task_name in task_names]
        return tuple(sorted(chosen, key=lambda r: (r.task_name, r.size)))

    def learned_of(self, task_name: str, size: str = "") -> Learned:
        """What is known of one task name and, apart, of that size of it; and the devices. One round trip."""
        fields = [task_name, *([f"{task_name}\n{size}"] if size else [])]
        return self._looked_up(*fields)

    def learn_peaks(
        self, task_name: str, runs: Sequence[Peaks], declared: Peaks, *, size: str = "", overwrite: bool = False
    ) -> bool:
        """Tell what the runs of a task used, oldest first; returns whether it was set: what it has itself stays.

        ``overwrite``: also where it has learned something.
        """
        told = [peaks.to_wire() for peaks in runs]
        head = ("1" if overwrite else "0", task_name, size, declared.to_wire())
        return bool(self._run("learn_peaks", *head, *told))

    @wire.reads("what was learned about what tasks use")
    def _looked_up(self, *fields: str) -> Learned:
        classes, rows = self._run("recommend", *fields)
        found = tuple(self._recommendation(row) for row in rows)
        return Learned(found, tuple(_capacities(classes)))

    def _recommendation(self, row: Sequence[bytes]) -> Recommendation:
        name, size, at, *rest = (field.decode() for field in row)
        margin = self.options.recommend_margin
        gpu, ram = (_usage_mb(rest[5 * i : 5 * i + 5], margin) for i in range(2))
        cores = _usage_cores(rest[10:15])
        runs = max(usage.runs for usage in (gpu, ram, cores) if usage is not None)
        return Recommendation(name, size, runs, float(at), gpu, ram, cores)


def _capacities(classes: Iterable[bytes]) -> Iterable[Capacity]:
    for text in classes:
        memory, cores, ram = (int(part) for part in text.decode().split(":")[:3])
        yield Capacity(memory, cores, ram)


def _usage_mb(told: Sequence[str], margin: float) -> Usage | None:
    if not told[4]:
        return None
    declared, runs, p50, p99, most = (int(field) for field in told)
    # A quantile of a sketch is off by 5 % at most, also upwards.
    suggested = rounded_mb(most * (1 + margin)) if runs >= FEWEST_RUNS else None
    verdict = ""
    if suggested is not None:
        if not declared:
            verdict = NOT_DECLARED
        elif most > declared:
            verdict = TOO_SMALL
        elif is_much(declared, suggested):
            verdict = TOO_LARGE
    return Usage(declared, runs, min(p50, most), min(p99, most), most, suggested, verdict)


def _usage_cores(told: Sequence[str]) -> Usage | None:
    if not told[4]:
        return None
    declared, runs, p50, p99, most = (int(field) for field in told)
    milli = (declared, min(p50, most), min(p99, most), most)
    asked, half, nearly, largest = (amount / 1000 for amount in milli)
    suggested = max(1, math.ceil(nearly - _NOISE_CORES)) if runs >= FEWEST_RUNS else None
    verdict = ""
    if suggested is not None:
        if asked and half >= _BUSY * asked:
            verdict = BUSY
        elif is_much_cores(asked, suggested):
            verdict = TOO_LARGE
    return Usage(asked, runs, half, nearly, largest, suggested, verdict)


def is_much(asked: float, suggested: int) -> bool:
    """Whether so many MB are much more than is suggested."""
    return asked > WASTEFUL * suggested and asked - suggested >= _SPARED_MB


def is_much_cores(asked: float, suggested: int) -> bool:
    """Whether so many cores are."""
    return asked >= WASTEFUL * suggested and asked - suggested >= _SPARED_CORES


def rounded_mb(amount: float) -> int:
    """Rounded up to 64 MB, from 1 GB on to 256 MB: a suggestion that people can read, and that changes seldom."""
    step = _STEP_MB if amount <= _LARGE_MB else _LARGE_STEP_MB
    return max(step, math.ceil(amount / step) * step)
