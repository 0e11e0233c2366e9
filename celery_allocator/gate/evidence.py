"""What a rule may look at: the history's rows in its window, and the ledger as it is now.

Both are opened when first asked for, so that a gate of live rules needs no history, and one of the history no ledger.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from celery_allocator.history.window import Window
from celery_allocator.ledger import Ledger

_NEVER = datetime(9999, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Event:
    """One entry of the event stream as the history keeps it; ``fields`` without event, time and ids.

    ``task_name``, ``tenant`` and ``shape`` ("2048:2:4096:t") are those of its allocation, empty where it concerns none.
    """

    event_id: str
    event: str
    at: datetime
    object_id: str
    fields: Mapping[str, Any]
    task_name: str = ""
    tenant: str = ""
    shape: str = ""

    def text(self, field: str) -> str:
        """A field, empty where the event has none."""
        value = self.fields.get(field)
        return "" if value is None else str(value)

    def number(self, field: str) -> int:
        """A field as a whole number, 0 where the event has none."""
        return int(self.text(field) or 0)

    @property
    def order(self) -> tuple[int, int]:
        """Where it stands in the stream."""
        return stream_order(self.event_id)


class Records(Protocol):
    """The history as rules read it, row by row."""

    def allocations(
        self, columns: Sequence[str], *, by: str, start: datetime, end: datetime
    ) -> Iterator[Any]:  # pragma: no cover
        """Rows with these columns of the allocations whose time ``by`` lies from ``start`` to ``end``."""

    def alive(self, columns: Sequence[str], at: datetime) -> Iterator[Any]:  # pragma: no cover
        """The same for allocations submitted before ``at`` that had not ended then."""

    def events(
        self, names: Iterable[str], *, start: datetime | None, end: datetime, of: Sequence[str] | None = None
    ) -> Iterator[Event]:  # pragma: no cover
        """Events of these names in the stream's order; ``of``: of these objects alone."""

    def count_events(self, start: datetime, end: datetime) -> int:  # pragma: no cover
        """How many events there are of that time."""

    def gaps(self) -> Iterator[tuple[datetime, datetime, int | None]]:  # pragma: no cover
        """Between which moments events are missing, and how many, where that is known."""


class Evidence:
    """Everything one rule may look at, narrowed to its window and its filters."""

    def __init__(
        self,
        window: Window,
        filters: Mapping[str, Sequence[str]],
        *,
        records: Callable[[], Records],
        ledger: Callable[[], Ledger],
    ) -> None:
        self.window = window
        self._filters = {key: [re.compile(fnmatch.translate(glob)) for glob in globs] for key, globs in filters.items()}
        self._records = records
        self._ledger = ledger

    @property
    def records(self) -> Records:
        """The history, whole."""
        return self._records()

    @property
    def ledger(self) -> Ledger:
        """The ledger, whole."""
        return self._ledger()

    def matches(self, *, task: str | None = None, tenant: str | None = None, device: str | None = None) -> bool:
        """Whether that is what the rule's filters choose (``device``: ``node/device``). ``None`` is not looked at."""
        found = {"task": task, "tenant": tenant, "device": device}
        return all(
            any(glob.fullmatch(text) for glob in globs)
            for key, globs in self._filters.items()
            if (text := found[key]) is not None
        )

    def allocations(self, *columns: str, by: str, or_later: bool = False) -> Iterator[Any]:
        """Chosen allocations whose time ``by`` (a column) lies in the window; rows with these columns and more.

        ``or_later``: also those of which it lies after the window.
        """
        end = _NEVER if or_later else self.window.end
        rows = self.records.allocations(_with_choice(columns), by=by, start=self.window.start, end=end)
        return (row for row in rows if self._chosen(row))

    def alive_at_the_end(self, *columns: str) -> Iterator[Any]:
        """Chosen allocations that had not ended when the window did."""
        return (row for row in self.records.alive(_with_choice(columns), self.window.end) if self._chosen(row))

    def events(self, *names: str) -> Iterator[Event]:
        """Events of the window and of these names that concern chosen allocations."""
        for event in self.records.events(names, start=self.window.start, end=self.window.end):
            task = event.task_name or event.text("name")
            if self.matches(task=task, tenant=event.tenant, device=event.text("device")):
                yield event

    def gaps(self, since: datetime | None = None) -> list[tuple[datetime, datetime, int | None]]:
        """Gaps in the history that reach into the window, or into the time from ``since`` on."""
        start = self.window.start if since is None else min(since, self.window.start)
        return [gap for gap in self.records.gaps() if gap[1] >= start and gap[0] < self.window.end]

    def _chosen(self, row: Any) -> bool:
        device = f"{row.node}/{row.device}" if row.device else ""
        return self.matches(task=row.task_name or "", tenant=row.tenant or "", device=device)


def stream_order(event_id: str) -> tuple[int, int]:
    """``"1700000000000-12"`` → (1700000000000, 12)."""
    ms, _, sequence = event_id.partition("-")
    return int(ms), int(sequence or 0)


def _with_choice(columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*columns, "task_name", "tenant", "node", "device")))
