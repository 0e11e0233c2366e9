"""Pictures of the scheduling benchmark, by matplotlib (the extra ``plot``)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celery_allocator.simulator import TaskRun
from celery_allocator.simulator.drawing import figure_class

#: Colours that people with any sight tell apart (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def _picture(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    picture = figure_class()(figsize=(width, height), dpi=110, layout="constrained")
    axes = picture.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
    return picture, list(axes)


def packing(
    curves: Mapping[str, Sequence[Mapping[int, float]]],
    reference: Mapping[str, tuple[tuple[float, float] | None, tuple[float, float]]],
    folder: Path,
) -> None:
    """GPUs allocated over GPUs requested, by strategy; the reference's figures at 100 and 130 % as crosses."""
    picture, (axes,) = _picture(8, 4.2)
    for (name, runs), colour in zip(curves.items(), _COLOURS, strict=False):
        shared = sorted(set.intersection(*(set(run) for run in runs)))
        axes.plot(shared, [statistics.fmean(run[at] for run in runs) for at in shared], label=name, color=colour)
    for name, beside in (("FGD", 0.6), ("BestFit", -1.1), ("Random", -1.1)):
        published = reference[name][0]
        if published is not None:
            axes.plot((100, 130), published, "x", color="black", markersize=6)
            axes.annotate(f"{name}, published", (101, published[0] + beside), fontsize=8)
    axes.set_xlim(70, 130.5)
    axes.set_ylim(70, 100)
    axes.set_xlabel("GPUs requested so far, % of the cluster")
    axes.set_ylabel("GPUs allocated, %")
    axes.legend(loc="lower right", frameon=False)
    picture.savefig(folder / "scheduling-packing.png")


def waiting(scores: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Mean bounded slowdown of every scheduler, a panel for each trace."""
    picture, panels = _picture(10, 3.6, len(scores))
    for axes, (trace, found) in zip(panels, scores.items(), strict=True):
        names = list(found)[::-1]
        values = [found[name].slowdown for name in names]
        colours = [_COLOURS[1] if name.startswith("ours") else _COLOURS[0] for name in names]
        bars = axes.barh(names, values, color=colours, log=True)
        axes.bar_label(bars, [f"{value:,.1f}" for value in values], padding=3, fontsize=8)
        axes.set_xlim(1, max(values) * 5)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(trace, loc="left")
        axes.set_xlabel("mean bounded slowdown")
    picture.savefig(folder / "scheduling-waiting.png")


def dates(runs: Mapping[str, Sequence[TaskRun]], folder: Path) -> None:
    """How far from the start the date told at submission was, ours and the naive rule's, as shares of tasks."""
    picture, panels = _picture(10, 3.6, len(runs))
    for axes, (trace, found) in zip(panels, runs.items(), strict=True):
        both = [run for run in found if run.p50_s is not None and run.naive_s is not None and run.start_s is not None]
        shares = [100 * (i + 1) / len(both) for i in range(len(both))]
        for label, told, colour in (
            ("ours (p50)", "p50_s", _COLOURS[1]),
            ("position × mean ÷ slots", "naive_s", _COLOURS[0]),
        ):
            errors = sorted(max(1.0, abs(getattr(run, told) - (run.start_s or 0.0))) / 60 for run in both)
            axes.plot(errors, shares, label=label, color=colour)
        axes.set_xscale("log")
        axes.set_title(trace, loc="left")
        axes.set_xlabel("minutes between date and start, at most")
        axes.set_ylabel("tasks that waited, %")
        axes.legend(loc="upper left", frameon=False)
    picture.savefig(folder / "scheduling-dates.png")
