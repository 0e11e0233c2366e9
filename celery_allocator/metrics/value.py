"""One series at one moment."""

from __future__ import annotations

from typing import NamedTuple

#: What stands for a label's value that is not one of those foreseen, or has no series of its own.
OTHER = "other"


class Value(NamedTuple):
    """The metric's name without prefix, the values of its labels in their order, and its value."""

    name: str
    labels: tuple[str, ...]
    value: float
