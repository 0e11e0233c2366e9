"""The figures that the table and the page show of each group, and what they call them."""

from __future__ import annotations

from typing import NamedTuple

from celery_allocator.report import Report
from celery_allocator.report.build import DIMENSIONS
from celery_allocator.surfaces.report.numbers import figure

#: How dimensions are called.
HEADS = dict(zip(DIMENSIONS, ("Name", "Tenant", "Node", "Device", "Day"), strict=True))


class Column(NamedTuple):
    """``figure``: its name in the JSON; ``head``: what people read."""

    figure: str
    head: str


def columns(report: Report) -> tuple[Column, ...]:
    """What is shown; the JSON and the CSV have all."""
    unit = report.unit
    short = "GPU-h" if unit == "gpu_hours" else "GB-h"
    return tuple(
        Column(*pair)
        for pair in (
            ("tasks", "Tasks"),
            ("live", "Live"),
            ("successes", "OK"),
            ("failures", "Failed"),
            ("success_rate", "OK share"),
            (f"promised_{unit}", f"{short} promised"),
            (f"used_{unit}", f"{short} used"),
            (f"waste_{unit}", f"{short} wasted"),
            ("wait_median_s", "Wait p50"),
            ("wait_p95_s", "Wait p95"),
            ("run_median_s", "Run p50"),
            ("run_p95_s", "Run p95"),
            ("regrants", "Re-grants"),
            ("losses", "Losses"),
            ("estimate_error_median_s", "Estimate off by"),
            ("started_by_estimate", "By estimate"),
            ("dates_covered", "By p90"),
            ("date_error_median_s", "Date off by"),
        )
    )


def key_texts(key: tuple[str | None, ...]) -> list[str]:
    """A group's values as they are shown: ``-`` for none."""
    return [part or "-" for part in key]


#: How the figures of dates are called.
DATE_HEADS = ("Starts", "By their p90", "Half off by less than")


def date_rows(report: Report) -> list[tuple[str, ...]]:
    """What, which of it, and the figures of its dates, as they are shown."""
    return [
        (HEADS[dimension], value or "-", *(figure(name, number) for name, number in figures.items()))
        for dimension, groups in report.dates.as_dict().items()
        for value, figures in groups.items()
    ]


def gap_told(entries: int | None, first: str, last: str) -> str:
    """A gap in words: ``"4 entries are missing between … and …"``."""
    count = "An unknown number of entries is" if entries is None else f"{entries} entries are"
    return f"{'1 entry is' if entries == 1 else count} missing between {first} and {last}"
