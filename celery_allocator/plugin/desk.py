"""The desk: carries out what remote control asks of the ledger, so that the worker's event loop need not wait for it.

The event loop hears of tasks, children and heartbeats; a ledger that is slow or away must not hold it up. So what is
asked is done in a thread of its own, with a client of its own, and the loop waits for the answer only for a moment.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.ledger import Ledger
from celery_allocator.plugin.courier import Courier

#: Seconds that the event loop waits for an answer: less than the second that ``celery control`` waits for it.
PATIENCE_S = 0.5


class Desk:
    """Does one thing after the other. ``connect`` makes the client, when the first one is asked for."""

    def __init__(self, connect: Callable[[], Ledger]) -> None:
        self._connect = connect
        self._ledger: Ledger | None = None
        self._courier = Courier("remote", self._carry_out, key=lambda errand: errand.number)
        self._last: _Errand | None = None

    def ask(self, act: Callable[[Ledger], Any], patience_s: float = PATIENCE_S) -> Any:
        """What ``act`` returns, and raises. Raises :class:`LedgerUnavailable` when that takes too long.

        Then it is done later all the same, unless it fails; and until it is, nothing else is taken on.
        """
        if self._last is not None and not self._last.done.is_set():
            raise LedgerUnavailable("the ledger has not answered an earlier command yet; this one is not carried out")
        self._last = errand = _Errand(act)
        self._courier.hand_over([errand])
        if not errand.done.wait(patience_s):
            raise LedgerUnavailable(
                f"no answer of the ledger within {patience_s:g} s; it may still be done: see celery-allocator journal"
            )
        if errand.error is not None:
            raise errand.error
        return errand.reply

    def _carry_out(self, errands: list[_Errand]) -> None:
        for errand in errands:
            try:
                self._ledger = self._ledger or self._connect()
                errand.reply = errand.act(self._ledger)
            except AllocatorError as error:
                errand.error = error
            finally:
                if errand.error is None and errand.reply is None:
                    errand.error = AllocatorError("an unexpected error, which the worker's log tells")
                errand.done.set()


_numbers = itertools.count()


class _Errand:
    def __init__(self, act: Callable[[Ledger], Any]) -> None:
        self.number = next(_numbers)
        self.act = act
        self.reply: Any = None
        self.error: AllocatorError | None = None
        self.done = threading.Event()
