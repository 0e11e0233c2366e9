"""What is counted: counters and histograms, added to by some threads and read by others."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from celery_allocator.metrics.table import COUNTER, HISTOGRAM, METRICS


@dataclass
class Distribution:
    """Observations in buckets. ``counts``: one per bucket (not cumulative), and one beyond the last."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def copy(self) -> Distribution:
        """As it is now."""
        return Distribution(self.bounds, list(self.counts), self.total)


class Tallies:
    """All counters and histograms of :data:`METRICS`. What is done within :meth:`together` is seen as one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counters: dict[str, dict[tuple[str, ...], float]] = {
            m.name: {} if m.labels or m.elsewhere else {(): 0} for m in METRICS.values() if m.type == COUNTER
        }
        self._distributions = {m.name: Distribution(m.buckets) for m in METRICS.values() if m.type == HISTOGRAM}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around several changes."""
        with self._lock:
            yield

    def add(self, name: str, *labels: str, amount: float = 1) -> None:
        """Count one more, or ``amount``; 0 makes the series known, so that its first increase is seen."""
        with self._lock:
            series = self._counters[name]
            series[labels] = series.get(labels, 0) + amount

    def put(self, name: str, *labels: str, value: float) -> None:
        """Something that is counted elsewhere has come to ``value``."""
        with self._lock:
            self._counters[name][labels] = value

    def expect(self, name: str, values: Iterable[str]) -> None:
        """Make these values of the one label known."""
        for value in values:
            self.add(name, value, amount=0)

    def observe(self, name: str, value: float) -> None:
        """One more observation, in seconds."""
        with self._lock:
            self._distributions[name].observe(value)

    def counters(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Every counter's series, by label values."""
        with self._lock:
            return {name: dict(series) for name, series in self._counters.items()}

    def distributions(self) -> dict[str, Distribution]:
        """Every histogram."""
        with self._lock:
            return {name: each.copy() for name, each in self._distributions.items()}
