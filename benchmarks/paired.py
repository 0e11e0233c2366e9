"""Paired measurements: every side is timed in every round, in a random order, so that load from outside hits all alike.

Only ratios between sides of one run are worth reporting; absolute times belong to the machine.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: A side's one measurement: does its own preparation and cleaning, returns the seconds of the part that counts.
Side = Callable[[], float]


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, and its spread: the ratio within each of several consecutive blocks, lowest and highest."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} … {self.high:.2f})"


class Progress:
    """One line on a terminal that is written over; plain lines, at most one in two seconds, elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._said = 0.0
        self._terminal = sys.stderr.isatty()

    def at(self, done: int) -> None:
        """Say how far it is."""
        now = time.monotonic()
        last = done >= self._total
        if not last and now - self._said < (0.1 if self._terminal else 2.0):
            return
        self._said = now
        text = f"{self._label}: {done}/{self._total}"
        end = "\n" if last or not self._terminal else ""
        sys.stderr.write(f"\r{text}{end}" if self._terminal else f"{text}\n")
        sys.stderr.flush()


def stopwatch(function: Callable[[], object]) -> float:
    """Seconds that ``function`` takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def interleave(
    sides: Mapping[str, Side], rounds: int, *, label: str, warmup: int = 5, seed: int = 1
) -> dict[str, list[float]]:
    """Measure every side ``rounds`` times, each round in a new random order; ``warmup`` rounds before do not count."""
    order = list(sides)
    shuffle = random.Random(seed).shuffle  # noqa: S311  # an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in sides}
    progress = Progress(label, rounds)
    for round_number in range(-warmup, rounds):
        shuffle(order)
        for name in order:
            seconds = sides[name]()
            if round_number >= 0:
                times[name].append(seconds)
        if round_number >= 0:
            progress.at(round_number + 1)
    return times


def ratio(over: Sequence[float], under: Sequence[float], blocks: int = 8) -> Ratio:
    """Median of ``over`` by median of ``under``; the two must come from one :func:`interleave`."""
    size = max(1, len(over) // blocks)
    parts = [
        statistics.median(over[i : i + size]) / statistics.median(under[i : i + size])
        for i in range(0, len(over) - size + 1, size)
    ]
    return Ratio(statistics.median(over) / statistics.median(under), min(parts), max(parts))
