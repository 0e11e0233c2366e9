"""A thread that follows the event stream, from now on, and counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery_allocator.errors import AllocatorError
from celery_allocator.ledger import Ledger
from celery_allocator.metrics.counting import Counting
from celery_allocator.metrics.tallies import Tallies

logger = logging.getLogger(__name__)

#: Entries per read.
BATCH = 1000
#: Seconds for which one read waits, so that the thread can end; and after a failure.
_WAIT_S, _RETRY_S = 1.0, 1.0


class Follower:
    """Reads the stream of one pool. ``connect`` gives a client for this thread alone."""

    def __init__(self, connect: Callable[[], Ledger], tallies: Tallies) -> None:
        self._connect = connect
        self._tallies = tallies
        self.counting = Counting(tallies)
        #: The last entry that was counted; empty before it is known where to begin.
        self.position = ""
        self._complaint = ""

    def run(self, stop: threading.Event) -> None:
        """Follow until ``stop`` is set; outages of the ledger are waited for."""
        ledger: Ledger | None = None
        while not stop.is_set():
            try:
                ledger = ledger or self._connect()
                self.step(ledger, _WAIT_S)
                self._complaint = ""
            except AllocatorError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    logger.warning("metrics: %s; trying again", error)
                stop.wait(_RETRY_S)
            except Exception:
                logger.exception("metrics: unexpected error; going on")
                stop.wait(_RETRY_S)
        if ledger is not None:
            ledger.client.close()

    def step(self, ledger: Ledger, block_s: float = 0.0) -> int:
        """Count what has come since the last step, one batch at most; returns how many entries.

        Raises what the ledger raises; the next step goes on where this one stood.
        """
        if not self.position:
            self.position = ledger.position()
            return 0
        entries, sure = ledger.events_after(self.position, BATCH, block_s)
        if not sure:
            logger.warning("metrics: entries of the event stream after %s are gone unread", self.position)
            self._tallies.add("stream_gaps_total")
            self.counting.forget()
        if entries:
            # Counted once, even if one of them should be the reason of an error.
            self.position = entries[-1][0]
            self.counting.feed(entries)
        return len(entries)
