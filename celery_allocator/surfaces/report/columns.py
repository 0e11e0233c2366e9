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


#: How the figures of what was promised and used are called.
USE_HEADS = ("Name", "What", "Runs", "Promised", "Used p50", "Used at most", "Used share", "Grown", "Overused")


def use_rows(report: Report) -> list[tuple[str, ...]]:
    """Name, resource, and the figures of what was promised and used, as they are shown."""
    rows = []
    for name, use in report.uses.by_name.items():
        resources = (("GPU memory", "MB", use.gpu_memory_mb), ("RAM", "MB", use.ram_mb), ("cores", "", use.cpu_cores))
        more = (str(use.grown), str(use.overused))
        for what, unit, peaks in resources:
            told = peaks.as_dict()
            if told["runs"]:
                amounts = (told["promised_max"], told["used_median"], told["used_max"])
                shown = (f"{amount:,.4g} {unit}" if amount < 1000 else f"{amount:,.0f} {unit}" for amount in amounts)
                share_told = figure("used_share", told["used_share"])
                row = (name or "-", what, str(told["runs"]), *(text.strip() for text in shown), share_told)
                rows.append((*row, *more))
                more = ("", "")
        if more[0]:
            rows.append((name or "-", "-", *("-" for _ in range(5)), *more))
    return rows


def gap_told(entries: int | None, first: str, last: str) -> str:
    """A gap in words: ``"4 entries are missing between … and …"``."""
    count = "An unknown number of entries is" if entries is None else f"{entries} entries are"
    return f"{'1 entry is' if entries == 1 else count} missing between {first} and {last}"
