"""Run times of a task name by the rule in words, for tests: weights in a dict, and no care for what that costs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

GROWTH = 1.1
FEWEST = 3
PROMISED = 0.9


def bucket(ms: float) -> int:
    return 0 if ms <= 1 else math.ceil(math.log(ms) / math.log(GROWTH))


def pace(ms: float | None) -> str:
    """Run times within a factor of two of each other have one."""
    return "" if ms is None else str(max(0, math.ceil(math.log(max(1, ms) / 1000) / math.log(2))))


@dataclass
class Sketch:
    """One name's."""

    decay: float
    runs: int = 0
    weights: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def learn(self, ms: float) -> None:
        self.runs += 1
        weight = max(self.decay, 1 / self.runs)
        for each in self.weights:
            self.weights[each] *= 1 - weight
        self.weights[bucket(ms)] += weight

    def quantile(self, q: float, above: float | None = None) -> float | None:
        """In ms; of those runs only that took longer than ``above``."""
        told = {b: w for b, w in self.weights.items() if not above or b > bucket(above)}
        total, so_far = sum(told.values()), 0.0
        for b in sorted(told):
            so_far += told[b]
            if so_far >= q * total - 1e-9:
                return 1.0 if b == 0 else 2 * GROWTH**b / (1 + GROWTH)
        return None

    def promised(self, ran: float | None = None) -> float | None:
        """By when one counts as ended, from its start on, ms; ``None``: nobody knows."""
        if self.runs < FEWEST:
            return None
        told = self.quantile(PROMISED, ran)
        return told if told is not None else (ran or 0) * 1.5
