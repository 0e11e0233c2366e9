"""From the history to a report, in one pass over its rows.

Tasks, outcomes, waits and runs count where an allocation ended in the window. Hours count when they passed: a stretch
that reaches beyond the window, or beyond a day where days are told apart, counts with the part that lies inside. So the
counts and hours of two adjoining windows add up to those of both. What is known now judges all: an hour of a run that
failed after the window is a lost hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_allocator import history as histories
from celery_allocator.errors import HistoryQueryError
from celery_allocator.history.dates import kept
from celery_allocator.history.outcomes import FAILURES, SUCCESS
from celery_allocator.history.window import Window
from celery_allocator.report.dates import DatesBy
from celery_allocator.report.figures import Figures, Hours
from celery_allocator.report.result import GapSpan, Group, Report
from celery_allocator.report.series import Series
from celery_allocator.report.uses import Uses, overused

if TYPE_CHECKING:
    from celery_allocator.history import History

#: What reports can be grouped by.
DIMENSIONS = ("name", "tenant", "node", "device", "day")
Key = tuple[str | None, ...]


class _Subject(NamedTuple):
    """What a figure is about."""

    name: str
    tenant: str
    node: str | None
    device: str | None
    day: str


_VALUES: Mapping[str, Callable[[_Subject], str | None]] = {
    "name": lambda s: s.name,
    "tenant": lambda s: s.tenant,
    "node": lambda s: s.node,
    "device": lambda s: s.device,
    "day": lambda s: s.day,
}


def dimensions(text: str) -> tuple[str, ...]:
    """``"name,tenant"`` → its parts. Raises :class:`HistoryQueryError`."""
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        if part not in DIMENSIONS:
            raise HistoryQueryError("by", text, f"{part!r} is none of {', '.join(DIMENSIONS)}")
    if len(set(parts)) != len(parts):
        raise HistoryQueryError("by", text, "names something twice")
    return parts


def make_report(history: History, window: Window, by: Sequence[str] = ("name", "tenant")) -> Report:
    """The report of a window that is not empty. Raises :class:`HistoryError` and what the history raises."""
    return _Builder(history, window, dimensions(",".join(by))).build()


class _Builder:
    def __init__(self, history: History, window: Window, by: tuple[str, ...]) -> None:
        if window.seconds <= 0:
            raise HistoryQueryError("since", window.start.isoformat(), "must be before until")
        self._history = history
        self._window = window
        self._by = by
        self._groups: dict[Key, Figures] = {}
        self._series = Series(window)
        self._dates = DatesBy()
        self._uses = Uses()
        self._days = "day" in by
        self._memory: dict[tuple[str, str], int] = {}
        # What still lives counts where the window ends.
        self._last_day = _day(window.end - timedelta(microseconds=1))

    def build(self) -> Report:
        for (node, device), known in histories.devices(self._history).items():
            if known.memory_mb:
                self._memory[node, device] = known.memory_mb
                if known.serving:  # idle ones are shown, too
                    self._series.device(f"{node}/{device}", known.memory_mb)
        for row, stretches in histories.measured(self._history, self._window.start, self._window.end):
            if self._window.holds(row.ended_at):
                self._ended(row)
            else:
                self._figures(self._subject(row, self._last_day)).live += 1
            for stretch in stretches:
                self._held(row, stretch)
        totals = Figures()
        for figures in self._groups.values():
            totals.add(figures)
        return Report(
            self._history.pool,
            self._window,
            datetime.now(tz=timezone.utc),
            self._by,
            tuple(Group(key, figures) for key, figures in sorted(self._groups.items(), key=_rank(self._by))),
            totals,
            self._series.finish(),
            tuple(self._gaps()),
            self._dates,
            self._uses,
        )

    def _gaps(self) -> Iterator[GapSpan]:
        for gap in histories.gaps(self._history, self._window.start, self._window.end):
            yield GapSpan(*gap.between, gap.entries)

    def _subject(self, row: Any, day: str) -> _Subject:
        return _Subject(row.task_name, row.tenant, row.node, f"{row.node}/{row.device}" if row.device else None, day)

    def _figures(self, subject: _Subject) -> Figures:
        key = tuple(_VALUES[dimension](subject) for dimension in self._by)
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Figures()
        return found

    def _ended(self, row: Any) -> None:
        figures = self._figures(self._subject(row, _day(row.ended_at) if self._days else ""))
        figures.tasks += 1
        figures.outcomes[row.outcome or "ended"] += 1
        figures.regrants += max(0, row.grants - 1)
        figures.losses += row.losses
        figures.grown += row.grown or 0
        figures.overused += overused(row)
        figures.affinity_hits += row.affinity == "hit"
        figures.affinity_misses += row.affinity == "miss"
        self._uses.note(row)
        good, bad = row.outcome in SUCCESS, row.outcome in FAILURES
        self._series.ended(row.task_name, "successes" if good else "failures" if bad else "others")
        if row.wait_s is not None:
            figures.waits.append(row.wait_s)
            self._series.waited(row.wait_s)
            if row.estimated_start_at is not None and row.submitted_at is not None:
                ready = max(row.submitted_at, row.eta_at or row.submitted_at)
                figures.estimate_errors.append(row.wait_s - (row.estimated_start_at - ready).total_seconds())
        promise = kept(row)
        if promise is not None:
            figures.dates.score(promise)
            self._dates.score(promise, day=_day(row.ended_at), tenant=row.tenant, name=row.task_name)
        if row.wait_s is not None or row.run_s > 0:
            figures.runs.append(row.run_s)

    def _held(self, row: Any, stretch: Any) -> None:
        window = self._window
        start_s = max(stretch.start.timestamp(), window.start_s)
        end_s = window.end_s if stretch.end is None else min(stretch.end.timestamp(), window.end_s)
        if start_s >= end_s:
            return
        run_from_s = end_s if stretch.run_from is None else max(stretch.run_from.timestamp(), start_s)
        lost = stretch.lost and stretch.end is not None
        for number, place in enumerate(_places(row, stretch)):
            memory_mb = self._memory.get(place)
            device = "/".join(place) if place[1] else None
            cores = (row.cpu_cores or 0) if number == 0 else 0  # of several GPUs, cores are taken once
            begin_s = start_s
            for day, upto_s in self._parts(start_s, end_s):
                figures = self._figures(_Subject(row.task_name, row.tenant, place[0] or None, device, day))
                figures.core_hours += cores * (upto_s - begin_s) / 3600
                ran_s = max(0.0, upto_s - max(begin_s, run_from_s))
                _add(figures, row, upto_s - begin_s, ran_s, memory_mb, lost=lost)
                begin_s = upto_s
            if row.gpu_memory_mb:
                self._series.held(row.task_name, device or "", memory_mb, row.gpu_memory_mb, start_s, end_s)

    def _parts(self, start_s: float, end_s: float) -> Iterator[tuple[str, float]]:
        """Up to where each day's part goes; one part where days are not told apart."""
        if not self._days:
            yield "", end_s
            return
        while start_s < end_s:
            day = int(start_s // 86400)
            upto_s = min(end_s, (day + 1) * 86400.0)
            yield _day(datetime.fromtimestamp(day * 86400, tz=timezone.utc)), upto_s
            start_s = upto_s


def _places(row: Any, stretch: Any) -> list[tuple[str, str]]:
    """Node and device of each GPU that was held: one, as a rule."""
    first = (stretch.node, stretch.device)
    names = [name.partition("/") for name in (row.devices or "").split()]
    several = [(node, device) for node, _, device in names]
    # The row tells those of the last grant; of earlier ones the first alone is known.
    return several if several[:1] == [first] else [first] * (row.gpu_count or 1)


def _add(figures: Figures, row: Any, held_s: float, ran_s: float, memory_mb: int | None, *, lost: bool) -> None:
    gpu_mb = row.gpu_memory_mb or 0
    if not gpu_mb:
        return
    gb, peak_mb, run_h = gpu_mb / 1024, row.peak_gpu_memory_mb, ran_s / 3600
    hours = Hours(promised=gb * held_s / 3600, unstarted=gb * (held_s - ran_s) / 3600)
    if lost:
        hours.lost = gb * run_h
    if peak_mb is not None:
        hours.used, hours.measured = peak_mb / 1024 * run_h, gb * run_h
        if not lost:
            hours.unused = max(0, gpu_mb - peak_mb) / 1024 * run_h
    figures.gb_hours.add(hours)
    if memory_mb:
        figures.gpu_hours.add(hours, 1024 / memory_mb)
    else:
        figures.unplaced += hours.promised


def _rank(by: tuple[str, ...]) -> Callable[[tuple[Key, Figures]], Any]:
    """By day where days are told apart; then the largest first, and then by name."""

    def rank(item: tuple[Key, Figures]) -> Any:
        key, figures = item
        names = tuple(part or "" for part in key)
        if by[0] == "day":
            return names
        return (-figures.gb_hours.promised, -figures.core_hours, -figures.tasks, names)

    return rank


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d")
