"""Deletes what is older than the history is kept, a little at a time, so that recording goes on."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from celery_allocator.history.writer import Writer

#: Rows that one transaction deletes of each table, and seconds until the next look once nothing is left.
ROWS = 2000
_LOOK_S = 300.0


class Retention:
    """Used by the recorder that has the turn. ``days``: 0 keeps everything."""

    def __init__(self, writer: Writer, days: int) -> None:
        self._writer = writer
        self._days = days
        self._due = 0.0

    def some(self, now: datetime) -> int:
        """Delete some of what is too old; returns how many rows. Called when there is nothing to record."""
        if not self._days or time.monotonic() < self._due:
            return 0
        deleted = self._writer.delete_before(now - timedelta(days=self._days), ROWS)
        if not deleted:
            self._due = time.monotonic() + _LOOK_S
        return deleted
