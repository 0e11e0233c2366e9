"""Draws the shipped dashboard from its JSON and Prometheus' answers: not Grafana, but the same layout and queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from tests.metrics.dashboard import queries
from tests.support.prometheus_server import PrometheusServer

#: Pixels of one unit of the grid.
UNIT_W, UNIT_H = 61, 36
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#fade2a", "#56a64b", "#ca95e5")
STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 12px sans-serif; position: relative }
section, h2 { position: absolute; box-sizing: border-box; margin: 0; overflow: hidden }
section { background: #181b1f; border: 1px solid #2c3235; border-radius: 2px; padding: 4px 8px }
h2 { font-size: 15px; padding: 8px } h3 { margin: 0; font-size: 12px }
b { display: block; font-size: 34px; text-align: center; padding-top: 22px } svg { display: block }
p { margin: 0; height: 30px; overflow: hidden; font-size: 10px } i { font-style: normal; margin-right: 8px }
"""

Points = list[tuple[float, float]]


def page(board: dict[str, Any], prometheus: PrometheusServer, interval: str, start: float, end: float) -> str:
    """The whole dashboard as one page without scripts."""
    parts = []
    for panel in board["panels"]:
        grid = panel["gridPos"]
        place = f"left:{grid['x'] * UNIT_W + 8}px;top:{grid['y'] * UNIT_H + 8}px;"
        place += f"width:{grid['w'] * UNIT_W - 6}px;height:{grid['h'] * UNIT_H - 6}px"
        title = escape(panel["title"])
        if panel["type"] == "row":
            parts.append(f'<h2 style="{place}">{title}</h2>')
            continue
        series = _series(panel, prometheus, interval, start, end)
        width, height = grid["w"] * UNIT_W - 26, grid["h"] * UNIT_H - 70
        body = _stat(panel, series) if panel["type"] == "stat" else _chart(panel, series, width, height, start, end)
        parts.append(f'<section style="{place}" data-drawn="{len(series)}"><h3>{title}</h3>{body}</section>')
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><body>{''.join(parts)}"


def _series(
    panel: dict[str, Any], prometheus: PrometheusServer, interval: str, start: float, end: float
) -> list[tuple[str, Points]]:
    found = []
    for query in queries(panel):
        for one in prometheus.query_range(query.filled(interval), start, end, max(0.25, (end - start) / 200)):
            points = [(float(at), float(value)) for at, value in one["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                found.append((query.name(one["metric"]), points))
    return found


def _stat(panel: dict[str, Any], series: Sequence[tuple[str, Points]]) -> str:
    if not series:
        return "<b>No data</b>"
    value = series[0][1][-1][1]
    defaults = panel["fieldConfig"]["defaults"]
    told = {key: each["text"] for mapping in defaults["mappings"] for key, each in mapping["options"].items()}
    steps = defaults["thresholds"]["steps"]
    colour = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
    colour = {"text": "#ccccdc", "green": "#73bf69", "red": "#f2495c"}[colour]
    return f'<b style="color:{colour}">{told.get(f"{value:g}", number(value, defaults["unit"]))}</b>'


def _chart(
    panel: dict[str, Any], series: Sequence[tuple[str, Points]], width: int, height: int, start: float, end: float
) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    drawn = _stack(series) if stacked else list(series)
    values = [value for _, points in drawn for _, value in points] or [0.0]
    low, high = min(defaults.get("min", min(values)), *values), max(defaults.get("max", 0), *values)
    high = high if high > low else low + 1

    def x(at: float) -> float:
        return 60 + (at - start) / (end - start) * (width - 60)

    def y(value: float) -> float:
        return height - 4 - (value - low) / (high - low) * (height - 12)

    lines = [
        f'<line x1=60 x2={width} y1={y(v):.1f} y2={y(v):.1f} stroke="#2c3235"/>'
        f'<text x=54 y={y(v) + 4:.1f} fill="#9fa7b3" font-size=10 text-anchor=end>{number(v, defaults["unit"])}</text>'
        for v in (low + (high - low) * step / 4 for step in range(5))
    ]
    # Of those that are stacked the highest first: the next lies before it.
    pieces = [(index, piece) for index, (_, points) in enumerate(drawn) for piece in _pieces(points)]
    for index, points in reversed(pieces):
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        colour = COLOURS[index % len(COLOURS)]
        if stacked:
            edge = f"{x(points[0][0]):.1f},{y(low):.1f} {path} {x(points[-1][0]):.1f},{y(low):.1f}"
            lines.append(f'<polygon points="{edge}" fill="{colour}" fill-opacity="0.5"/>')
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    legend = "".join(
        f'<i style="color:{COLOURS[index % len(COLOURS)]}">▬ {escape(name)}</i>'
        for index, (name, _) in enumerate(series)
    )
    return f'<svg width="{width}" height="{height}">{"".join(lines)}</svg><p>{legend or "No data"}</p>'


def _pieces(points: Points) -> list[Points]:
    """Where a series was not there for a while, its line is broken."""
    step = min((b[0] - a[0] for a, b in pairwise(points)), default=1.0)
    pieces = [[points[0]]]
    for before, after in pairwise(points):
        if after[0] - before[0] > 1.5 * step:
            pieces.append([])
        pieces[-1].append(after)
    return pieces


def _stack(series: Sequence[tuple[str, Points]]) -> list[tuple[str, Points]]:
    below: dict[float, float] = {}
    found = []
    for name, points in series:
        raised = []
        for at, value in points:
            below[at] = below.get(at, 0.0) + value
            raised.append((at, below[at]))
        found.append((name, raised))
    return found


def number(value: float, unit: str) -> str:
    """A value as people read it."""
    if unit == "percentunit":
        return f"{value * 100:.0f}%"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.0f} ms"
    suffix = {"s": " s", "ops": " /s"}.get(unit, "")
    return f"{value:.3g}{suffix}"
