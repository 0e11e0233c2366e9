"""What the tab reads, once for all who look: a second's worth of the ledger, as JSON that is ready to be sent.

Everything here blocks, and is called in threads of its own: a ledger that hangs must not take those with which Flower
serves its other pages. The ledger is asked at most once a second for each view, however many pages are open; who comes
meanwhile waits for that answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from celery_allocator.errors import AllocatorError
from celery_allocator.ledger import Ledger
from celery_allocator.overview import Match, Overview, Page, Running, read_overview, read_waiting
from celery_allocator.surfaces.flower import cells
from celery_allocator.surfaces.flower.placements import Placements

#: Seconds for which what was read is shown again.
FRESH_S = 1.0
#: The same of what is learned from all runs.
LEARNED_FRESH_S = 30.0
#: Views that are kept: each page of each search is one.
_KEPT = 64
#: Questions to the ledger at a time.
_THREADS = 4
#: Rows of one answer at most.
MOST_ROWS = 200


@dataclass
class _Kept:
    made_at: float
    body: bytes


@dataclass(frozen=True)
class Query:
    """A part of a list: ``limit`` rows from ``offset`` on, of those that are meant."""

    limit: int = 50
    offset: int = 0
    text: str = ""
    tenant: str = ""

    @property
    def match(self) -> Match:
        """What is meant."""
        return Match(self.text, self.tenant or None)


class Board:
    """Reads one ledger. ``connect``: makes a client of its own, when first needed. Thread-safe.

    Every method returns JSON, and raises what the ledger raises.
    """

    def __init__(self, connect: Callable[[], Ledger]) -> None:
        self._connect = connect
        self._ledger: Ledger | None = None
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="allocator")
        #: For what changes something: it does not wait behind who looks.
        self.desk = ThreadPoolExecutor(1, thread_name_prefix="allocator-act")
        self._lock = threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}
        self._kept: dict[Any, _Kept] = {}
        self._overview: tuple[float, Overview | AllocatorError] | None = None
        self._overview_lock = threading.Lock()
        self._placements = Placements()

    @property
    def ledger(self) -> Ledger:
        """The client."""
        with self._lock:
            if self._ledger is None:
                self._ledger = self._connect()
            return self._ledger

    def forget(self) -> None:
        """Somebody has acted: what was read is old."""
        with self._lock:
            self._kept.clear()
            self._overview = None

    def pool(self) -> bytes:
        """Nodes, devices, counts."""
        return self._once("pool", lambda: cells.pool_dict(self._look()))

    def waiting(self, query: Query) -> bytes:
        """A part of the line."""
        return self._once(
            ("waiting", query),
            lambda: cells.waiting_dict(self._waiting(query)),
        )

    def running(self, query: Query) -> bytes:
        """A part of what holds something, latest first. ``query.text`` is also looked for in devices' names."""

        def read() -> dict[str, Any]:
            running = self._look().running
            found = [one for one in reversed(running) if _is_meant(one, query)]
            return cells.running_dict(found, len(running), query.limit, query.offset)

        return self._once(("running", query), read)

    def on_hold(self, query: Query) -> bytes:
        """A part of what is on hold."""
        return self._once(
            ("on_hold", query),
            lambda: cells.on_hold_dict(self.ledger.on_hold(query.limit, query.offset), self._look().cluster.on_hold),
        )

    def events(self, limit: int) -> bytes:
        """The latest events, latest first."""
        return self._once(("events", limit), lambda: {"rows": self._placements.latest(self.ledger, limit)})

    def placements(self) -> bytes:
        """Grants, ends and losses per minute of the last hour."""
        return self._once("placements", lambda: self._placements.per_minute(self.ledger))

    def recommendations(self, limit: int) -> bytes:
        """What tasks had better ask for. It changes with every run, and matters to nobody within seconds."""

        def read() -> dict[str, Any]:
            return cells.recommendations_dict(self.ledger.recommend(), limit)

        return self._once(("recommendations", limit), read, LEARNED_FRESH_S)

    def _waiting(self, query: Query) -> Page:
        seen = self._look()
        part = {"limit": query.limit, "offset": query.offset}
        return read_waiting(self.ledger, seen.cluster, seen.outlook, **part, match=query.match)

    def _look(self) -> Overview:
        with self._overview_lock:
            now = time.monotonic()
            if self._overview is None or now - self._overview[0] > FRESH_S:
                found: Overview | AllocatorError
                try:
                    found = read_overview(self.ledger)
                except AllocatorError as error:  # those who wait behind need not find it out once more
                    found = error
                self._overview = (time.monotonic(), found)
            if isinstance(self._overview[1], AllocatorError):
                raise self._overview[1]
            return self._overview[1]

    def _once(self, view: Any, make: Callable[[], dict[str, Any]], fresh_s: float | None = None) -> bytes:
        fresh_s = FRESH_S if fresh_s is None else fresh_s
        with self._lock:
            lock = self._locks.setdefault(view, threading.Lock())
        with lock:
            with self._lock:
                kept = self._kept.get(view)
            if kept is not None and time.monotonic() - kept.made_at <= fresh_s:
                return kept.body
            try:
                body = json.dumps(make(), separators=(",", ":"), ensure_ascii=False).encode()
            except AllocatorError:
                with self._lock:
                    self._locks.pop(view, None)
                raise
            with self._lock:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                    self._locks.clear()
                self._kept[view] = _Kept(time.monotonic(), body)
            return body


def _is_meant(one: Running, query: Query) -> bool:
    a = one.allocation
    devices = " ".join(f"{a.node}/{device}" for device in a.device_ids)
    on = query.text.lower() in f"{devices} {a.worker or ''}".lower()
    return query.match(a) or (on and Match(tenant=query.tenant or None)(a))
