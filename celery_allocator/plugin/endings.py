"""Tasks that have ended, until the ledger knows: given back at once, or when a process is really gone.

Nothing is forgotten while the ledger cannot be reached; every release is kept and made again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from celery_allocator.ledger import Grant, Ledger
from celery_allocator.model import Allocation
from celery_allocator.plugin.processes import is_gone

#: Seconds between looks at whether a task whose process lives on has been given back by that process itself.
_ASK_S = 1.0


@dataclass(frozen=True)
class Ending:
    """An allocation to be released: at once, or when process ``pid`` (started at ``born``) is gone.

    ``is_free``: tells whether what it held is free by then; at once, where it is ``None``.
    """

    allocation: Allocation
    outcome: str
    #: Class of the exception that ended it, where one did.
    error: str = ""
    pid: int | None = None
    born: str | None = None
    is_free: Callable[[Allocation], bool] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it can be released."""
        if self.pid is not None and not is_gone(self.pid, self.born):
            return False
        return self.is_free is None or self.is_free(self.allocation)


class Endings:
    """Thread-safe. ``settled`` is called with each allocation that is given back."""

    def __init__(self, settled: Callable[[Allocation], None]) -> None:
        self._settled = settled
        self._lock = threading.RLock()  # signal handlers end tasks, too
        self._pending: list[Ending] = []
        self._ask_at = 0.0

    def add(self, ending: Ending) -> None:
        """One more."""
        with self._lock:
            self._pending.append(ending)

    def __contains__(self, allocation: Allocation) -> bool:
        with self._lock:
            return any(ending.allocation == allocation for ending in self._pending)

    def settle(
        self, ledger: Ledger, publish: Callable[[tuple[Grant, ...]], None], between: Callable[[], None] = lambda: None
    ) -> bool:
        """Release what can be; True while a process is still to be waited for. Raises :class:`LedgerError`.

        ``between`` is called between two releases: each takes a round trip, and there may be many.
        """
        with self._lock:
            endings = list(self._pending)
        # They stay pending meanwhile: others ask whether a task has ended. To release twice is harmless.
        waiting = self._settle(endings, ledger, publish, between)
        done = {id(ending) for ending in endings} - {id(ending) for ending in waiting}
        with self._lock:
            self._pending = [ending for ending in self._pending if id(ending) not in done]
        return bool(waiting)

    def _settle(
        self,
        endings: list[Ending],
        ledger: Ledger,
        publish: Callable[[tuple[Grant, ...]], None],
        between: Callable[[], None],
    ) -> list[Ending]:
        ready = [ending for ending in endings if ending.is_over]
        waiting = [ending for ending in endings if ending not in ready]
        # A process that was to be ended and lives on may have given back itself, at the end of its task.
        asked = waiting if waiting and time.monotonic() >= self._ask_at else []
        if asked:
            self._ask_at = time.monotonic() + _ASK_S
        # Nearly always the child has released already: one call tells for all of them.
        held = ledger.still_held([ending.allocation.allocation_id for ending in [*ready, *asked]])
        for ending in ready:
            if ending.allocation.allocation_id in held:
                between()
                claim = ending.allocation
                released = ledger.release(claim.allocation_id, claim.token, ending.outcome, error=ending.error)
                publish(released.grants)
            self._settled(ending.allocation)
        for ending in asked:
            if ending.allocation.allocation_id not in held:
                waiting.remove(ending)
                self._settled(ending.allocation)
        return waiting
