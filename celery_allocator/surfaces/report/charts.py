"""Plots as SVG: no script, no font and nothing else from outside; colours come from the page's style.

Each has a title and a description for those who cannot see it; the page puts a table of its numbers beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from celery_allocator.surfaces.report.elements import element
from celery_allocator.surfaces.report.numbers import hours, share

WIDTH = 960.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 10.0, 26.0
_HEIGHT = 220.0
_ROW = 26.0
#: Rough width of a character of the labels, in the picture's units.
_CHARACTER = 6.6


def stacked_columns(
    title: str, told: str, labels: Sequence[str], layers: Sequence[tuple[str, str, Sequence[float]]]
) -> Element:
    """Columns over time; ``layers``: name, class of its colour, values. A column's pieces stand in their order."""
    totals = [sum(values[i] for _, _, values in layers) for i in range(len(labels))]
    picture, scale = _axes(title, told, max(totals, default=0.0), "{:g}".format)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    for i, label in enumerate(labels):
        base = 0.0
        for name, colour, values in layers:
            if values[i] > 0:
                top = scale(base + values[i])
                piece = _bar(_LEFT + i * step, top, step, scale(base) - top, colour)
                piece.append(element("title", f"{label}, {name}: {hours(values[i])}"))
                picture.append(piece)
                base += values[i]
    _below(picture, labels, step, every=_spread(labels, step))
    return picture


def columns(title: str, told: str, labels: Sequence[str], values: Sequence[int]) -> Element:
    """One column per class of a histogram."""
    picture, scale = _axes(title, told, float(max(values, default=0)), "{:g}".format, whole=True)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        if value:
            bar = _bar(_LEFT + i * step, scale(value), step, scale(0) - scale(value), "s0")
            bar.append(element("title", f"{label}: {value}"))
            picture.append(bar)
    _below(picture, labels, step, every=1)
    return picture


def rows(title: str, told: str, names: Sequence[str], parts: Sequence[Sequence[tuple[str, str, int]]]) -> Element:
    """A bar per name, in parts: what, class of its colour, how many."""
    height = len(names) * _ROW * 2 + 4
    picture = _picture(title, told, height)
    longest = max((sum(n for _, _, n in line) for line in parts), default=0) or 1
    for i, (name, line) in enumerate(zip(names, parts, strict=True)):
        y = i * _ROW * 2 + 16
        total = sum(n for _, _, n in line)
        picture.append(element("text", _cut(name, WIDTH - 90), x=0.0, y=y, class_="label"))
        picture.append(element("text", str(total), x=WIDTH, y=y, class_="label", text_anchor="end"))
        x = 0.0
        for what, colour, count in line:
            if count:
                width = WIDTH * count / longest
                part = element("rect", x=x, y=y + 6, width=max(1.0, width - 1), height=16.0, rx=2.0, class_=colour)
                part.append(element("title", f"{name}: {count} {what}"))
                picture.append(part)
                x += width
    return picture


def strips(
    title: str, told: str, labels: Sequence[str], loads: Sequence[tuple[str, float, Sequence[float]]]
) -> Element:
    """A strip per device: its name, its average, and the height of each moment's share of 1."""
    strip, gap = 34.0, 20.0
    height = len(loads) * (strip + gap) + _BOTTOM
    picture = _picture(title, told, height)
    step = WIDTH / max(1, len(labels))
    for row, (name, average, values) in enumerate(loads):
        top = row * (strip + gap) + gap
        picture.append(element("text", _cut(name, WIDTH - 140), x=0.0, y=top - 6, class_="label"))
        mean = f"{share(average)} on average"
        picture.append(element("text", mean, x=WIDTH, y=top - 6, class_="label", text_anchor="end"))
        picture.append(element("rect", x=0.0, y=top, width=WIDTH, height=strip, class_="ground"))
        for i, value in enumerate(values):
            if value > 0:
                tall = max(1.0, strip * min(1.0, value))
                bar = element("rect", x=i * step, y=top + strip - tall, width=step + 0.1, height=tall, class_="s0")
                bar.append(element("title", f"{name}, {labels[i]}: {share(value)}"))
                picture.append(bar)
    _below(picture, labels, step, every=_spread(labels, step), left=0.0, y=height - 8)
    return picture


def _picture(title: str, told: str, height: float) -> Element:
    return element(
        "svg",
        element("title", title),
        element("desc", told),
        role="img",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        aria_label=f"{title}. {told}",
    )


def _axes(
    title: str, told: str, largest: float, shown: Callable[[float], str], *, whole: bool = False
) -> tuple[Element, Callable[[float], float]]:
    """A picture with lines at round values, and where a value lies in it."""
    picture = _picture(title, told, _HEIGHT)
    step = _round_step(largest / 4, whole=whole)
    top = step * max(1, math.ceil(largest / step - 1e-9))

    def scale(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    for i in range(round(top / step) + 1):
        y = scale(i * step)
        picture.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        picture.append(element("text", shown(i * step), x=_LEFT - 6, y=y + 4, class_="label", text_anchor="end"))
    return picture, scale


def _round_step(least: float, *, whole: bool) -> float:
    """1, 2 or 5 times a power of ten, not below ``least``."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return max(1.0, step) if whole else step


def _bar(x: float, y: float, width: float, height: float, colour: str) -> Element:
    inner = max(1.0, width * 0.86)
    return element("rect", x=x + (width - inner) / 2, y=y, width=inner, height=max(0.5, height), class_=colour)


def _below(
    picture: Element,
    labels: Sequence[str],
    step: float,
    *,
    every: int,
    left: float = _LEFT,
    y: float = _HEIGHT - 8,
) -> None:
    """Labels below the columns, as many as have room."""
    free = 0.0
    for i in range(0, len(labels), every):
        half = len(labels[i]) * _CHARACTER / 2
        x = min(max(left + (i + 0.5) * step, half), WIDTH - half)
        if x - half >= free:
            picture.append(element("text", labels[i], x=x, y=y, class_="label", text_anchor="middle"))
            free = x + half + 8


def _spread(labels: Sequence[str], step: float) -> int:
    room = max((len(label) for label in labels), default=1) * _CHARACTER + 12
    return max(1, math.ceil(room / step))


def _cut(text: str, width: float) -> str:
    room = int(width / _CHARACTER)
    return text if len(text) <= room else text[: room - 1] + "…"
