"""What a worker has started and not given back: the other half of the ledger's account, kept where the tasks run.

The ledger may lose its last writes (a failover) or this worker (a lease that ran out). What is written here is what the
worker then reports; and a request that Celery dropped without a word (on losing its broker, at shutdown) is found here
and goes back into line.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass, replace
from typing import Any

from celery_allocator.model import Allocation
from celery_allocator.plugin.pool import is_unbegun

#: Seconds after which a start that nobody asks about any more is given up: its delivery went with the connection.
_ABANDONED_S = 10.0


@dataclass(frozen=True)
class Holding:
    """One task that passed the gate. ``request`` is Celery's, for as long as Celery keeps it.

    ``pid``: the child that has begun it, or ``None``. ``since``: when it passed, on the monotonic clock.
    """

    allocation: Allocation
    request: weakref.ReferenceType[Any]
    pid: int | None = None
    since: float = 0.0


@dataclass(frozen=True)
class Started:
    """A start whose answer did not arrive: the ledger may count it as running."""

    allocation_id: str
    token: int
    asked_at: float


class Holdings:
    """Thread-safe: the event loop adds, the keeper's thread reads and settles."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # signal handlers end tasks, too
        self._held: dict[str, Holding] = {}
        self._unanswered: dict[str, Started] = {}

    def add(self, allocation: Allocation, request: Any) -> None:
        """A request was made for a task that passed the gate."""
        with self._lock:
            self._held[allocation.allocation_id] = Holding(allocation, weakref.ref(request), since=time.monotonic())

    def begun(self, allocation: Allocation, pid: int) -> None:
        """Child ``pid`` has begun it."""
        with self._lock:
            held = self._held.get(allocation.allocation_id)
            if held is not None and held.allocation.token == allocation.token:
                self._held[allocation.allocation_id] = replace(held, pid=pid)

    def drop(self, allocation: Allocation) -> None:
        """It is given back, or was never ours any more. A later grant of the same task is not meant."""
        with self._lock:
            held = self._held.get(allocation.allocation_id)
            if held is not None and held.allocation.token == allocation.token:
                del self._held[allocation.allocation_id]

    def all(self) -> list[Holding]:
        """Everything that has not been given back."""
        with self._lock:
            return list(self._held.values())

    def orphans(self) -> list[Holding]:
        """What Celery has dropped: no request is left that could end."""
        return [holding for holding in self.all() if holding.request() is None]

    def unbegun(self, *, pool_stopped: bool) -> list[tuple[Holding, Any]]:
        """What no child was given, with its request: it waits for a slot or, ``pool_stopped``, lies in the pool."""
        found = [(holding, holding.request()) for holding in self.all()]
        return [(h, r) for h, r in found if r is not None and is_unbegun(r, pool_stopped=pool_stopped)]

    def asked(self, allocation_id: str, token: int) -> None:
        """A start was sent; :meth:`answered` takes it back."""
        with self._lock:
            self._unanswered[allocation_id] = Started(allocation_id, token, time.monotonic())

    def asks_on(self, allocation_id: str) -> None:
        """That start, if one was sent, will be sent again."""
        with self._lock:
            sent = self._unanswered.get(allocation_id)
            if sent is not None:
                self._unanswered[allocation_id] = replace(sent, asked_at=time.monotonic())

    def answered(self, allocation_id: str) -> None:
        """The ledger has answered that start."""
        with self._lock:
            self._unanswered.pop(allocation_id, None)

    def unanswered(self) -> list[str]:
        """Ids of starts without an answer."""
        with self._lock:
            return list(self._unanswered)

    def abandoned(self) -> list[Started]:
        """Starts without an answer that are not asked about any more."""
        before = time.monotonic() - _ABANDONED_S
        with self._lock:
            return [started for started in self._unanswered.values() if started.asked_at < before]
