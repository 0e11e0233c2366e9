"""A replayed trace drawn: what is in use and how many wait, over time. Needs the extra ``plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery_allocator.errors import PlotExtraMissing
from celery_allocator.simulator.replay import Moment, Replayed

#: Points of a line at most: more than a picture has columns.
_POINTS = 2000
_UNITS = ((3 * 86_400, 86_400, "days"), (3 * 3600, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))
_INCHES, _DPI = (9.0, 5.4), 120


def figure_class() -> Any:
    """matplotlib's ``Figure``, which draws without a display. Raises :class:`PlotExtraMissing`."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotExtraMissing(
            f"plots need {error.name}, which is not installed: pip install 'celery-allocator[plot]'"
        ) from error
    return Figure


def formats() -> list[str]:
    """Endings of files that can be drawn. Raises :class:`PlotExtraMissing`."""
    picture = figure_class()()
    return sorted(picture.canvas.get_supported_filetypes())


def draw(replayed: Replayed, path: Path, title: str = "") -> None:
    """Write the picture to ``path``; its ending says in which format. Raises :class:`PlotExtraMissing`, ``OSError``."""
    moments = _thinned(replayed.moments)
    origin = moments[0].at_s if moments else 0.0
    length = moments[-1].at_s - origin if moments else 0.0
    size, unit = next((size, unit) for least, size, unit in _UNITS if length >= least)
    times = [(moment.at_s - origin) / size for moment in moments]
    cluster = replayed.cluster

    picture = figure_class()(figsize=_INCHES, dpi=_DPI, layout="constrained")
    use, waiting = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    if cluster.gpu_memory_mb:
        shares = [100 * moment.gpu_used_mb / cluster.gpu_memory_mb for moment in moments]
        use.step(times, shares, where="post", label="GPU memory", linewidth=1.2)
    if cluster.cpu_cores:
        shares = [100 * moment.cores_used / cluster.cpu_cores for moment in moments]
        use.step(times, shares, where="post", label="cores", linewidth=1.2)
    use.set_ylim(0, 102)
    use.set_ylabel("in use, %")
    use.legend(loc="upper right", frameon=False)
    waiting.fill_between(times, [moment.waiting for moment in moments], step="post", alpha=0.6, color="tab:red")
    waiting.set_ylim(bottom=0)
    waiting.yaxis.get_major_locator().set_params(integer=True)
    waiting.set_ylabel("tasks waiting")
    waiting.set_xlabel(unit)
    for axes in (use, waiting):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    if title:
        picture.suptitle(title)
    # Without a date inside, the same simulation gives the same file.
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _thinned(moments: list[Moment]) -> list[Moment]:
    """At most so many moments, of each stretch of time the one with most waiting."""
    if len(moments) <= _POINTS:
        return moments
    first, last = moments[0].at_s, moments[-1].at_s
    step = (last - first) / _POINTS or 1.0
    most: dict[int, Moment] = {}
    for moment in moments:
        stretch = int((moment.at_s - first) / step)
        if stretch not in most or moment.waiting >= most[stretch].waiting:
            most[stretch] = moment
    return list(most.values())
