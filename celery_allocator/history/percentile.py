"""Percentiles by nearest rank: always a value that was measured, never one between two."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable


def ordered(values: Iterable[float]) -> array[float]:
    """Values in ascending order, eight bytes each."""
    return array("d", sorted(array("d", values)))


def nearest_rank(ascending: array[float], percent: float) -> float | None:
    """The smallest value that at least ``percent`` of all do not exceed; ``None`` of none.

    Of n values that is the one at rank ⌈percent/100 · n⌉, counted from 1 (and at least 1).
    """
    if not ascending:
        return None
    # Multiplied first: 0.95 · 20 is a little more than 19 in floating point, and its ceiling 20.
    rank = max(1, math.ceil(percent * len(ascending) / 100))
    return ascending[min(rank, len(ascending)) - 1]
