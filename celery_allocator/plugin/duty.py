"""Duties: what one worker of the pool does at a time for all of them, in a thread of its own.

Not in the keeper's thread: that renews the worker's lease, and nothing may hold it up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.ledger import Ledger

logger = logging.getLogger(__name__)


class Duty:
    """Runs ``step(ledger)`` every ``every_s`` seconds while this worker has the duty of that name.

    Whoever has it keeps it as long as it comes back within ``lease_s``. ``retire`` is called when somebody else has
    taken it over, or it ends: what ``step`` remembers has grown old. A step that fails is told of in the log, once
    while the reason stays the same, and the next one is tried. While this worker does not ``want`` it, it is left to
    others.
    """

    def __init__(
        self,
        name: str,
        holder: str,
        connect: Callable[[], Ledger],
        step: Callable[[Ledger], None],
        retire: Callable[[], None] = lambda: None,
        *,
        every_s: float = 1.0,
        lease_s: float = 10.0,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self._holder = holder
        self._connect = connect
        self._step = step
        self._retire = retire
        self._every_s = every_s
        self._lease_s = lease_s
        self._wanted = wanted
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_it = False
        self._complaint = ""

    @property
    def has_it(self) -> bool:
        """Whether this worker has the duty, as far as it knows."""
        return self._has_it

    def start(self) -> None:
        """Begin to ask for the duty. A second call changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"allocator-{self.name}", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the step that runs, and leave the duty to others. Waits at most ``timeout_s`` seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        ledger: Ledger | None = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if self._has_it or self._wanted():
                    ledger = ledger or self._connect()
                    self._turn(ledger)
                self._complaint = ""
            except AllocatorError as error:
                self._complain(str(error), away=isinstance(error, LedgerUnavailable))
            except Exception:
                logger.exception("%s: unexpected error; going on", self.name)
            self._stop.wait(max(0.0, self._every_s - (time.monotonic() - began)))
        if self._has_it:
            self._retire()
        if ledger is not None:
            try:
                ledger.give_up_duty(self.name, self._holder)
            except AllocatorError:
                logger.debug("%s: could not be given up; its lease ends by itself", self.name)
            ledger.client.close()

    def _turn(self, ledger: Ledger) -> None:
        had_it = self._has_it
        if self._wanted():
            self._has_it = ledger.take_duty(self.name, self._holder, self._lease_s)
        else:
            ledger.give_up_duty(self.name, self._holder)
            self._has_it = False
        if self._has_it:
            self._step(ledger)
        elif had_it:
            self._retire()

    def _complain(self, text: str, *, away: bool) -> None:
        if text != self._complaint:
            (logger.info if away else logger.error)("%s: %s; trying again", self.name, text)
        self._complaint = text
