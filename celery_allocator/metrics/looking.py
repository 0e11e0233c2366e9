"""Looks at the ledger: one snapshot at a time, shared by all that ask within a short while.

A thread of its own looks: every few seconds, and when asked. So a server that does not answer holds up nobody for
longer than a scrape may take.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from celery_allocator.errors import AllocatorError
from celery_allocator.ledger import Accuracy, Ledger, Line, Reservation
from celery_allocator.metrics.idling import Idling
from celery_allocator.metrics.overusing import Overusing
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.model import TenantState
from celery_allocator.overview import Overview, read_overview

logger = logging.getLogger(__name__)

#: Seconds between looks that nobody asked for; and how often as long as a look takes it is at least, so that a large
#: pool's server has other things to do.
EVERY_S, TIMES = 2.0, 20
#: Seconds for which a look is fresh, and for which who asks for one waits.
FRESH_S, PATIENCE_S = 1.0, 4.0


@dataclass(frozen=True)
class Look:
    """The pool at one look. ``position``: the newest entry of the event stream then."""

    overview: Overview
    line: Line
    position: str
    tenants: tuple[TenantState, ...]
    reservation: Reservation | None
    accuracy: Accuracy


def look(ledger: Ledger) -> Look:
    """Look once: seven reads, none of which writes. Raises what the ledger raises."""
    return Look(
        *(read_overview(ledger), ledger.line(), ledger.position()),
        *(ledger.tenants(), ledger.reservation(), ledger.accuracy()),
    )


class Lookout:
    """Keeps the newest look at one pool. ``connect`` gives a client for the thread in :meth:`run` alone."""

    def __init__(self, connect: Callable[[], Ledger], tallies: Tallies, *, every_s: float = EVERY_S) -> None:
        self._connect = connect
        self._tallies = tallies
        self._every_s = every_s
        self._idling = Idling(tallies)
        self._overusing = Overusing(tallies)
        self._changed = threading.Condition()
        self._latest: Look | None = None
        self._at = 0.0
        #: Tries so far, and whether somebody waits for another one.
        self._tries = 0
        self._wanted = False
        self._stopped = False

    @property
    def latest(self) -> Look | None:
        """The last look, however old; ``None`` before the first and while the ledger is away."""
        with self._changed:
            return self._latest

    def fresh(self) -> Look | None:
        """A look that is at most :data:`FRESH_S` old; ``None`` where the ledger did not answer in time."""
        with self._changed:
            if self._is_fresh():
                return self._latest
            # A try that runs already may have begun before what is asked for; its answer is fresh enough all the same.
            before, self._wanted = self._tries, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._tries > before or self._stopped, PATIENCE_S)
            return self._latest if self._is_fresh() else None

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set and :meth:`wake` called."""
        ledger: Ledger | None = None
        while not stop.is_set():
            seen: Look | None = None
            began = time.monotonic()
            try:
                ledger = ledger or self._connect()
                seen = self.take(ledger)
            except AllocatorError as error:
                logger.debug("metrics: %s", error)  # the follower says so
            except Exception:
                logger.exception("metrics: unexpected error; going on")
            with self._changed:
                self._latest, self._at, self._wanted = seen, time.monotonic(), False
                self._tries += 1
                self._changed.notify_all()
                pause_s = max(self._every_s, TIMES * (self._at - began))
                self._changed.wait_for(lambda: self._wanted or stop.is_set(), pause_s)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if ledger is not None:
            ledger.client.close()

    def wake(self) -> None:
        """Let the thread see that it is to stop."""
        with self._changed:
            self._changed.notify_all()

    def take(self, ledger: Ledger) -> Look:
        """Look once, and count what follows from it. Raises what the ledger raises."""
        seen = look(ledger)
        with self._tallies.together():
            for device in seen.overview.cluster.devices:
                # Known from its first look on, so that the first increase is seen.
                self._tallies.add("grants_total", device.node, device.device_id, amount=0)
                if device.is_gpu:
                    for name in ("out_of_memory_total", "claims_grown_total"):
                        self._tallies.add(name, device.node, device.device_id, amount=0)
            for view in seen.overview.devices:
                if view.use is not None and view.use.children_recycled is not None:
                    own = view.device.node, view.device.device_id, view.device.uuid
                    self._tallies.put("children_recycled_total", *own, value=view.use.children_recycled)
            for reason, count in seen.line.rejected.items():
                self._tallies.put("deliveries_rejected_total", reason, value=count)
            accuracy = seen.accuracy
            self._tallies.put("dates_scored_total", value=accuracy.scored)
            self._tallies.put("dates_covered_total", value=round((accuracy.covered or 0) * accuracy.scored))
            self._overusing.look(seen.overview)
            self._idling.look(seen.overview.cluster, seen.line)
        return seen

    def _is_fresh(self) -> bool:
        return self._latest is not None and time.monotonic() - self._at <= FRESH_S
