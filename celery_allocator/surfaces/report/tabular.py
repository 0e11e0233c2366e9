"""A report as CSV: one row per group, the totals last. The header depends on the dimensions alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from celery_allocator.report import FIGURES, Report

#: What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(report: Report) -> str:
    """Columns ``row`` ("group" or "total"), the dimensions, the figures. What is not known is empty.

    A name that begins like a formula gets an apostrophe in front: a spreadsheet must not run what somebody submitted.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", *report.by, *FIGURES))
    for group in report.groups:
        writer.writerow(("group", *(_name(part) for part in group.key), *_figures(group.figures.as_dict())))
    writer.writerow(("total", *("" for _ in report.by), *_figures(report.totals.as_dict())))
    return out.getvalue()


def _figures(figures: Mapping[str, Any]) -> list[Any]:
    return [_outcomes(value) if name == "outcomes" else _plain(value) for name, value in figures.items()]


def _outcomes(counted: Mapping[str, int]) -> str:
    return _name(" ".join(f"{name}={count}" for name, count in counted.items()))


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _name(text: str | None) -> str:
    text = text or ""
    return f"'{text}" if text.startswith(_FORMULA) else text
