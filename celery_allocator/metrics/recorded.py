"""How far the recorder of the history has come, where the history can be read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from celery_allocator.errors import AllocatorError
from celery_allocator.history import load
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between looks at the history.
_EVERY_S = 5.0


@dataclass(frozen=True)
class Recorded:
    """How far behind the event stream the history was when looked at; its gaps; the entries known to be missing."""

    lag_s: float
    gaps: int
    missed: int
    #: The entry that was recorded last.
    last: str


def read_recorded(settings: Settings, newest: str) -> Recorded | None:
    """What the history says of its recorder; ``None`` where nothing was ever recorded.

    ``newest``: the newest entry of the event stream, read before. Raises
    :class:`~celery_allocator.errors.HistoryError` and its kin where the history cannot be read.
    """
    with load("open_history")(settings) as opened:
        cursor = opened.cursor()
        if cursor is None:
            return None
        gaps = opened.gaps()
    lag_s = _lag_s(newest, cursor.last_event_id)
    return Recorded(lag_s, len(gaps), sum(gap.entries or 0 for gap in gaps), cursor.last_event_id)


def _lag_s(newest: str, last: str) -> float:
    return max(0.0, _ms(newest) - _ms(last)) / 1000


def _ms(event_id: str) -> int:
    return int(event_id.partition("-")[0])


class RecordedWatch:
    """Looks at the history now and then, in a thread of its own: a database that is slow holds up nothing else."""

    def __init__(self, settings: Settings, tallies: Tallies, newest: Callable[[], str | None]) -> None:
        """``newest``: the newest entry of the event stream; ``None`` while the ledger is away."""
        self._settings = settings
        self._newest = newest
        self._tallies = tallies
        #: As of the last look; ``None`` where the history was never read, or there is none.
        self.latest: Recorded | None = None
        self._seen: Recorded | None = None

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.look()
            except Exception:
                self.latest = None
                logger.exception("metrics: unexpected error; going on")
            stop.wait(_EVERY_S)

    def look(self) -> None:
        """Look once."""
        newest = self._newest()
        if newest is None:
            self.latest = None
            return
        try:
            found = read_recorded(self._settings, newest)
        except AllocatorError as error:  # also where the extra is missing, or nobody records
            logger.debug("metrics: the history cannot be read: %s", error)
            # Nor can it be written, perhaps: what is not recorded meanwhile counts from what was seen last.
            known = self._seen
            self.latest = None if known is None else replace(known, lag_s=_lag_s(newest, known.last))
            return
        if found is not None:
            before = self._seen
            self._count("recorder_gaps_total", found.gaps, before.gaps if before else None)
            self._count("recorder_missed_entries_total", found.missed, before.missed if before else None)
        self._seen = self.latest = found

    def _count(self, name: str, now: int, before: int | None) -> None:
        """Old gaps are forgotten with their part of the history; a counter only grows."""
        if before is None:
            self._tallies.put(name, value=now)
        elif now > before:
            self._tallies.add(name, amount=now - before)
