"""Looks at the ledger again and again in a thread, so that a ledger that is slow or away holds up nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from celery_allocator.errors import AllocatorError
from celery_allocator.overview import Page
from celery_allocator.surfaces.terminal.frame import Ask, Frame

#: Seconds for which what was found for a text is kept: a search reads all that waits.
_SEARCH_S = 5.0


class Watcher:
    """Calls ``seen`` with each frame, and with the error where there is none. From a thread of its own.

    ``read`` takes what is asked for, and a page that may be kept.
    """

    def __init__(
        self,
        read: Callable[[Ask, Page | None], Frame],
        seen: Callable[[Frame | AllocatorError], None],
        ask: Ask,
        interval: float,
    ) -> None:
        self._read, self._seen, self._ask, self._interval = read, seen, ask, interval
        self._wake, self._ended = threading.Event(), threading.Event()
        self._found: tuple[Ask, Page, float] | None = None
        self.paused = False
        # Never waited for: a call to a ledger that does not answer must not hold up the end of the program.
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Look for the first time, and go on."""
        self._thread.start()

    def end(self) -> None:
        """Tell nothing more."""
        self._ended.set()
        self._wake.set()

    def ask(self, ask: Ask) -> None:
        """From now on look at this; at once, and also while paused."""
        self._ask = ask
        self.again()

    def again(self) -> None:
        """Look at once."""
        self._found = None
        self._wake.set()

    def _run(self) -> None:
        asked = True
        while not self._ended.is_set():
            if asked or not self.paused:
                self._look()
            asked = self._wake.wait(self._interval)
            self._wake.clear()

    def _look(self) -> None:
        ask, found = self._ask, self._found
        kept = None
        if ask.text and found is not None and found[0] == ask and time.monotonic() - found[2] < _SEARCH_S:
            kept = found[1]
        try:
            told: Frame | AllocatorError = self._read(ask, kept)
        except AllocatorError as error:
            told = error
        if self._ended.is_set():
            return
        if isinstance(told, Frame) and kept is None:
            self._found = (ask, told.page, time.monotonic())
        self._seen(told)
