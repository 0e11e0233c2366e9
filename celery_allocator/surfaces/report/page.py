"""A report as one HTML page: works from a file, without a network and without scripts, in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element

from celery_allocator import __version__
from celery_allocator.report import Report
from celery_allocator.report.result import iso
from celery_allocator.surfaces.report import plots
from celery_allocator.surfaces.report.columns import (
    DATE_HEADS,
    HEADS,
    USE_HEADS,
    columns,
    date_rows,
    gap_told,
    key_texts,
    use_rows,
)
from celery_allocator.surfaces.report.elements import Child, element, html
from celery_allocator.surfaces.report.numbers import figure

#: Rows of the table of groups: a browser shows no more with pleasure. The totals count all of them.
MOST_ROWS = 500
#: The page itself may load nothing at all.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_TILES = (
    ("tasks", "tasks ended"),
    ("success_rate", "of them well"),
    ("wait_median_s", "median wait"),
    ("wait_p95_s", "95 % waited at most"),
    ("promised", "promised"),
    ("used", "used of them"),
    ("waste", "wasted"),
)


def html_page(report: Report) -> str:
    """The whole document."""
    title = f"Allocations of pool {report.pool}"
    span = f"{iso(report.window.start)} to {iso(report.window.end)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}, {span}"),
        element("style", _style()),
    )
    main = element(
        "main",
        element("header", element("h1", title), element("p", span, class_="span")),
        *(
            element(
                "p",
                f"This is not all. {gap_told(gap.entries, iso(gap.start), iso(gap.end))}.",
                class_="notice",
                role="note",
            )
            for gap in report.gaps
        ),
        _tiles(report),
        _section("By " + " and ".join(report.by), _unit_note(report), _groups(report)),
        *(_section(plot.title, plot.told, _scrolled(plot.picture), _numbers(plot)) for plot in plots.all_of(report)),
        _outcomes(report),
        _dates(report),
        _uses(report),
        element("footer", f"Made {iso(report.made_at)} by celery-allocator {__version__}. Times are UTC."),
    )
    return html(element("html", head, element("body", main), lang="en"))


def _style() -> str:
    return (files(__package__) / "style.css").read_text(encoding="utf-8")


def _section(title: str, told: str | None, *content: Child) -> Element:
    return element("section", element("h2", title), element("p", told) if told else None, *content)


def _scrolled(content: Element, label: str = "") -> Element:
    """What may be wider than a phone scrolls by itself; also by keyboard."""
    return element("div", content, class_="wide", tabindex="0", role="group", aria_label=label or "Plot")


def _tiles(report: Report) -> Element:
    totals = report.totals.as_dict()
    unit = {"gpu_hours": "GPU-hours", "gb_hours": "GB-hours"}[report.unit]
    made = []
    for name, label in _TILES:
        hours = name in ("promised", "used", "waste")
        key = f"{name}_{report.unit}" if hours else name
        shown = f"{unit} {label}" if hours else label
        made.append(element("div", element("dt", shown), element("dd", _value(key, totals[key])), class_="tile"))
    return element("dl", *made, class_="tiles", id="totals")


def _value(name: str, value: Any) -> Element:
    """A number as people read it, with the number itself."""
    shown = figure(name, value)
    return element("data", shown, value="" if value is None else str(value), data_figure=name)


def _unit_note(report: Report) -> str:
    parts = []
    if len(report.groups) > MOST_ROWS:
        parts.append(f"The first {MOST_ROWS} of {len(report.groups)} groups; the totals count all of them.")
    if report.unit == "gb_hours":
        parts.append("In GB-hours: the memory of some device is not known.")
    return " ".join(parts)


def _groups(report: Report) -> Element:
    shown = columns(report)
    heads = [HEADS[dimension] for dimension in report.by]
    rows = [
        element(
            "tr",
            *(element("th", text, scope="row") for text in key_texts(group.key)),
            *_cells([c.figure for c in shown], group.figures.as_dict()),
        )
        for group in report.groups[:MOST_ROWS]
    ]
    total = element(
        "tr",
        element("th", "Total", scope="row", colspan=str(len(heads))),
        *_cells([c.figure for c in shown], report.totals.as_dict()),
    )
    table = element(
        "table",
        element(
            "thead",
            element(
                "tr",
                *(element("th", head, scope="col", class_="key") for head in heads),
                *(element("th", column.head, scope="col") for column in shown),
            ),
        ),
        element("tbody", *rows),
        element("tfoot", total),
        id="groups",
    )
    return _scrolled(table, "Figures of each group")


def _cells(names: Iterable[str], figures: dict[str, Any]) -> list[Element]:
    return [element("td", _value(name, figures[name])) for name in names]


def _numbers(plot: plots.Plot) -> Element:
    return element(
        "details",
        element("summary", "The numbers"),
        _scrolled(_plain_table(plot.heads, plot.rows), f"Numbers of: {plot.title}"),
    )


def _plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    body = [element("tr", element("th", row[0], scope="row"), *(element("td", c) for c in row[1:])) for row in rows]
    head = element("thead", element("tr", *(element("th", h, scope="col") for h in heads)))
    return element("table", head, element("tbody", *body))


def _dates(report: Report) -> Element | None:
    told = "What came of the starts that were promised at submit, of those that waited and were not moved meanwhile."
    return _listing("Dates", told, ("By", "Which", *DATE_HEADS), date_rows(report))


def _uses(report: Report) -> Element | None:
    told = "What was promised, and the most that runs used of it, of those that told it; claims that grew; overuse."
    return _listing("Promised and used", told, USE_HEADS, use_rows(report))


def _listing(title: str, told: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Element | None:
    """A section with a table; ``None`` if it has no rows."""
    if not rows:
        return None
    if len(rows) > MOST_ROWS:
        told += f" The first {MOST_ROWS} of {len(rows)}."
    return _section(title, told, _scrolled(_plain_table(heads, rows[:MOST_ROWS]), title))


def _outcomes(report: Report) -> Element | None:
    counted = report.totals.outcomes
    if not counted:
        return None
    rows = [(name, str(count)) for name, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    return _section("Outcomes", None, _scrolled(_plain_table(("Outcome", "Allocations"), rows), "Outcomes"))
