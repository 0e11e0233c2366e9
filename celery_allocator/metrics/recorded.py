"""How far the recorder of the history has come, where the history can be read."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from celery_allocator.errors import AllocatorError
from celery_allocator.history import load
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between looks at the history.
_EVERY_S = 10.0


@dataclass(frozen=True)
class Recorded:
    """The newest entry that the history has; the gaps in it; the entries that are known to be missing."""

    position: str
    gaps: int
    missed: int


def read_recorded(settings: Settings) -> Recorded | None:
    """What the history says of its recorder; ``None`` where nothing was ever recorded.

    Raises :class:`~celery_allocator.errors.HistoryError` and its kin where it cannot be read.
    """
    with load("open_history")(settings) as opened:
        cursor = opened.cursor()
        if cursor is None:
            return None
        gaps = opened.gaps()
        return Recorded(cursor.last_event_id, len(gaps), sum(gap.entries or 0 for gap in gaps))


class RecordedWatch:
    """Looks at the history now and then, in a thread of its own: a database that is slow holds up nothing else."""

    def __init__(self, settings: Settings, tallies: Tallies) -> None:
        self._settings = settings
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
        try:
            self.latest = read_recorded(self._settings)
        except AllocatorError as error:  # also where the extra is missing, or nobody records
            logger.debug("metrics: the history cannot be read: %s", error)
            self.latest = None
        if self.latest is not None:
            self._tallies.put("recorder_gaps_total", value=self.latest.gaps)
            self._tallies.put("recorder_missed_entries_total", value=self.latest.missed)
