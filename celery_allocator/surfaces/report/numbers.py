"""Numbers as the table and the page show them."""

from __future__ import annotations

from typing import Any


def figure(name: str, value: Any) -> str:
    """A figure of a report by its name: lengths of time, shares, hours and counts."""
    if value is None:
        return "-"
    if name == "outcomes":
        return ", ".join(f"{count} {outcome}" for outcome, count in value.items()) or "-"
    if name.endswith("_s"):
        return duration(value)
    if name in ("success_rate", "started_by_estimate", "dates_covered", "used_share"):
        return share(value)
    if name.endswith("_hours"):
        return hours(value)
    return str(value)


def duration(seconds: float) -> str:
    """A length of time in one or two units: ``0.25 s``, ``12 s``, ``3 min 5 s``, ``2 h 4 min``; may be negative."""
    sign, left = ("-" if seconds < 0 else ""), abs(seconds)
    if left < 10:
        return f"{sign}{left:.2f}".rstrip("0").rstrip(".") + " s"
    whole = round(left)
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{sign}{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{sign}{whole} s"


def hours(value: float) -> str:
    """Hours of something, in at least three digits: ``1234``, ``12.3``, ``0.123``."""
    if value == 0:
        return "0"
    for limit, digits in ((1000, 0), (100, 1), (10, 1), (0.1, 2)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def share(value: float) -> str:
    """A share of 1 in percent; 100 % and 0 % only where it is all or nothing."""
    shown = f"{value * 100:.1f}".removesuffix(".0")
    if shown == "100" and value < 1:
        shown = ">99.9"
    elif shown == "0" and value > 0:
        shown = "<0.1"
    return f"{shown} %"
