"""How far the recorder of the history has come, where the history can be read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

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
    lag_s = max(0.0, _ms(newest) - _ms(cursor.last_event_id)) / 1000
    return Recorded(lag_s, len(gaps), sum(gap.entries or 0 for gap in gaps))


def _ms(event_id: str) -> int:
    return int(event_id.partition("-")[0])


class RecordedWatch:
    """Looks at the history now and then, in a thread of its own: a database that is slow holds up nothing else."""

    def __init__(self, settings: Settings, tallies: Tallies, newest: Callable[[], str | None]) -> None:
        """``newest``: the newest entry of the event stream; ``None`` while the ledger is away."""
        self._settings = settings
        self._newest = newest
        self._tallies = tallies
        #: As of the last look; ``None`` where the history could not be read, or there is none.
        self.latest: Recorded | None = None

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
            self.latest = read_recorded(self._settings, newest)
        except AllocatorError as error:  # also where the extra is missing, or nobody records
            logger.debug("metrics: the history cannot be read: %s", error)
            self.latest = None
        if self.latest is not None:
            self._tallies.put("recorder_gaps_total", value=self.latest.gaps)
            self._tallies.put("recorder_missed_entries_total", value=self.latest.missed)
