"""Which plots a report has, what they say in words, and the tables beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from xml.etree.ElementTree import Element

from celery_allocator.report import Report
from celery_allocator.report.series import WAITS
from celery_allocator.surfaces.report import charts
from celery_allocator.surfaces.report.elements import element
from celery_allocator.surfaces.report.numbers import duration, hours, share

#: Names that have a colour of their own; the others share one.
_COLOURS = 5
#: Names and devices that are drawn: the largest.
_NAMES, _DEVICES = 12, 24


@dataclass(frozen=True)
class Plot:
    """One plot and its numbers."""

    title: str
    told: str
    picture: Element
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def all_of(report: Report) -> Iterator[Plot]:
    """Those that have something to show."""
    for plot in (_over_time(report), _waits(report), _devices(report), _endings(report)):
        if plot is not None:
            yield plot


def _over_time(report: Report) -> Plot | None:
    series = report.series
    lines = series.gpu_hours if report.unit == "gpu_hours" else series.gb_hours
    if not lines:
        return None
    unit = "GPU-hours" if report.unit == "gpu_hours" else "GB-hours"
    names = sorted(lines, key=lambda name: (-sum(lines[name]), name))
    layers = [(name or "-", f"s{i}", lines[name]) for i, name in enumerate(names[:_COLOURS])]
    left = len(names) - _COLOURS
    if left > 0:
        others = [sum(values) for values in zip(*(lines[name] for name in names[_COLOURS:]), strict=True)]
        layers.append(("1 other name" if left == 1 else f"{left} other names", "other", others))
    labels = _moments(series.starts(), series.step_s)
    per = _per(series.step_s)
    total = sum(sum(values) for values in lines.values())
    told = f"{unit} promised to tasks, {per}: {hours(total)} in all, most to {names[0] or '-'}."
    picture = charts.stacked_columns(f"{unit} over time", told, labels, layers)
    return Plot(
        f"{unit} promised {per}, by name",
        told,
        _with_legend(picture, [(name, colour) for name, colour, _ in layers]),
        ("From (UTC)", *(name for name, _, _ in layers)),
        [(label, *(hours(values[i]) for _, _, values in layers)) for i, label in enumerate(labels)],
    )


def _waits(report: Report) -> Plot | None:
    counts = report.series.waits
    if not sum(counts):
        return None
    labels = [f"≤ {duration(bound)}" for bound in WAITS] + ["longer"]
    within = sum(counts[:5])
    told = f"How long {sum(counts)} tasks waited for their first start; {share(within / sum(counts))} at most 1 min."
    rows = [(label, str(count)) for label, count in zip(labels, counts, strict=True)]
    return Plot("Waits", told, charts.columns("Waits", told, labels, counts), ("Waited", "Tasks"), rows)


def _devices(report: Report) -> Plot | None:
    series = report.series
    names = sorted(series.devices, key=lambda name: (-series.devices[name].average, name))
    if not names:
        return None
    chosen = sorted(names[:_DEVICES])
    loads = [(name, series.devices[name].average, series.devices[name].shares) for name in chosen]
    labels = _moments(series.starts(), series.step_s)
    mean = sum(load.average for load in series.devices.values()) / len(names)
    told = f"Share of each device's memory that was promised, over time: {share(mean)} on average of {len(names)}."
    if len(names) > _DEVICES:
        told += f" Drawn are the {_DEVICES} that were used most."
    return Plot(
        "Devices",
        told,
        charts.strips("Load of devices", told, labels, loads),
        ("From (UTC)", *chosen),
        [
            ("on average", *(share(average) for _, average, _ in loads)),
            *((label, *(share(shares[i]) for _, _, shares in loads)) for i, label in enumerate(labels)),
        ],
    )


def _endings(report: Report) -> Plot | None:
    endings = report.series.endings
    names = sorted(endings, key=lambda name: (-endings[name].total(), name))
    if not names:
        return None
    kinds = (("successes", "good", "well"), ("failures", "bad", "wrong"), ("others", "other", "neither"))
    told = "How tasks of each name ended: " + ", ".join(
        f"{sum(counted[kind] for counted in endings.values())} {word}" for kind, _, word in kinds
    )
    told += "." if len(names) <= _NAMES else f". Drawn are the {_NAMES} most frequent names of {len(names)}."
    chosen = [(name or "-", endings[name]) for name in names[:_NAMES]]
    picture = charts.rows(
        "Endings",
        told,
        [name for name, _ in chosen],
        [[(word, colour, counted[kind]) for kind, colour, word in kinds] for _, counted in chosen],
    )
    return Plot(
        "How tasks ended",
        told,
        _with_legend(picture, [(word, colour) for _, colour, word in kinds]),
        ("Name", "Well", "Wrong", "Neither"),
        [(name, *(str(counted[kind]) for kind, _, _ in kinds)) for name, counted in chosen],
    )


def _with_legend(picture: Element, entries: Sequence[tuple[str, str]]) -> Element:
    items = (element("li", element("span", class_=f"swatch {colour}"), name) for name, colour in entries)
    return element("div", element("ul", *items, class_="legend"), picture)


def _moments(starts: Sequence[datetime], step_s: int) -> list[str]:
    """Labels of buckets: days, or times of day with the day where several days are shown."""
    shown: Callable[[datetime], str]
    if step_s >= 86400:
        shown = lambda at: at.strftime("%Y-%m-%d")  # noqa: E731
    elif starts[0].date() == starts[-1].date():
        shown = lambda at: at.strftime("%H:%M")  # noqa: E731
    else:
        shown = lambda at: at.strftime("%m-%d %H:%M")  # noqa: E731
    return [shown(at) for at in starts]


def _per(step_s: int) -> str:
    if step_s == 86400:
        return "per day"
    return "per hour" if step_s == 3600 else f"per {duration(step_s)}"
