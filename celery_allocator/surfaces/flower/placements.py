"""Placements over time: the event stream counted by the minute, for the last hour, and the latest events themselves."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from celery_allocator.ledger import Ledger

#: Minutes that are shown.
MINUTES = 60
#: Latest events that are kept.
KEPT = 200
#: Entries that the first look reads, and then per read, and reads per look: the next one reads on.
_FIRST, _BATCH, _READS = 20_000, 2000, 25
_AFFINITY = ("hit", "miss")
_COUNTED = {"granted": "granted", "released": "ended", "lost": "lost"}


class Placements:
    """Follows the stream from one look to the next. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: str | None = None
        #: minute (since the epoch) → what was counted
        self._minutes: dict[int, Counter[str]] = {}
        self._latest: deque[dict[str, str]] = deque(maxlen=KEPT)
        self._since: int | None = None

    def per_minute(self, ledger: Ledger) -> dict[str, Any]:
        """``minutes``: one row per minute, oldest first; ``since``: when counting began, seconds since the epoch.

        ``affinity``: of all these grants, how many went to where their affinity was loaded, and how many did not.
        """
        with self._lock:
            self._follow(ledger)
            now = int(ledger.server_time() // 60)
            rows = []
            for minute in range(now - MINUTES + 1, now + 1):
                counted = self._minutes.get(minute, Counter())
                rows.append({"at": minute * 60, **{name: counted[name] for name in _COUNTED.values()}})
            shown = [self._minutes[row["at"] // 60] for row in rows if row["at"] // 60 in self._minutes]
            affinity = {word: sum(counted[f"affinity {word}"] for counted in shown) for word in _AFFINITY}
            since = None if self._since is None else self._since * 60
            return {"minutes": rows, "since": since, "affinity": affinity}

    def latest(self, ledger: Ledger, limit: int) -> list[dict[str, str]]:
        """The latest events, latest first, as the stream has them; ``entry`` is the entry's id."""
        with self._lock:
            self._follow(ledger)
            return [*reversed(self._latest)][:limit]

    def _follow(self, ledger: Ledger) -> None:
        if self._at is None:
            rows = ledger.newest_events(_FIRST)
            self._since = _minute(rows[0][1]) if rows else None
            self._take(rows)
            return
        for _ in range(_READS):
            rows, sure = ledger.events_after(self._at, _BATCH)
            if rows and not sure:  # the stream was cut beyond where we stood
                self._since = _minute(rows[0][1])
            self._take(rows)
            if len(rows) < _BATCH:
                return

    def _take(self, rows: list[tuple[str, dict[str, str]]]) -> None:
        for entry_id, fields in rows:
            self._count(entry_id, fields)
        self._at = rows[-1][0] if rows else self._at or "0-0"

    def _count(self, entry_id: str, fields: Mapping[str, str]) -> None:
        self._latest.append({"entry": entry_id, **fields})
        name = _COUNTED.get(fields.get("event", ""))
        minute = _minute(fields)
        if name is None or minute is None:
            return
        if minute not in self._minutes:
            self._minutes[minute] = Counter()
            for old in [known for known in self._minutes if known < minute - MINUTES]:
                del self._minutes[old]
        self._minutes[minute][name] += 1
        if name == "granted" and fields.get("warm") in _AFFINITY:
            self._minutes[minute][f"affinity {fields['warm']}"] += 1


def _minute(fields: Mapping[str, str]) -> int | None:
    at = fields.get("at", "")
    return int(at) // 60_000 if at.isdecimal() and len(at) < 16 else None
