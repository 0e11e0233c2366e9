"""Following the changes of a ledger, from where one stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

from celery_allocator.errors import ChangesMissed, RequestError
from celery_allocator.ledger import Ledger
from celery_allocator.ledger.wire import ENTRY_ID
from celery_allocator.updates.changes import Change, change
from celery_allocator.updates.form import OBJECTS

#: Entries per read.
_BATCH = 500
#: Seconds for which one read waits at most: less than the client's patience with the server.
_WAIT_S = 1.0
#: Positions that are words: the oldest change that is kept, and only new ones.
OLDEST, NEWEST = "-", "$"


class Watch(Iterator[Change]):
    """Iterates over changes. ``position``: that of the last entry that was looked at, to go on from another time."""

    def __init__(self, ledger: Ledger, since: str, block_s: float | None, objects: frozenset[str]) -> None:
        if since not in (OLDEST, NEWEST) and not ENTRY_ID.fullmatch(since):
            raise RequestError(f"since={since!r}: it is the position of a change, such as 1700000000000-0, or - or $")
        if unknown := sorted(objects - {*OBJECTS}):
            raise RequestError(f"object={', '.join(unknown)}: it must be one of {', '.join(OBJECTS)}")
        self._ledger = ledger
        self._block_s = block_s
        self._objects = objects
        self._ready: deque[tuple[str, Change | None]] = deque()
        self._last: str = {OLDEST: "0-0", NEWEST: ""}.get(since, since if "-" in since else f"{since}-0")
        self.position = self._last or ledger.position()
        self._last = self.position

    def __next__(self) -> Change:
        """The next change. Raises :class:`ChangesMissed`, :class:`LedgerUnavailable` (call it again, then)."""
        patience = None if self._block_s is None else time.monotonic() + self._block_s
        while True:
            while self._ready:
                self.position, found = self._ready.popleft()
                if found is not None and (not self._objects or found.object in self._objects):
                    return found
            left = _WAIT_S if patience is None else min(_WAIT_S, patience - time.monotonic())
            rows, sure = self._ledger.events_after(self._last, _BATCH, max(0.0, left))
            if not sure:
                raise ChangesMissed(self._last, rows[0][0])
            if not rows and patience is not None and time.monotonic() >= patience:
                raise StopIteration
            self._ready.extend((at, change(at, event)) for at, event in rows)
            self._last = rows[-1][0] if rows else self._last


def watch(ledger: Ledger, since: str = OLDEST, *, block_s: float | None = None, objects: Iterable[str] = ()) -> Watch:
    """Changes after the position ``since``, in their order; ``-``: from the oldest that is kept; ``$``: only new ones.

    ``block_s``: it ends when nothing has come for so many seconds (0: with what is there); ``None``: it waits for good.
    ``objects``: only changes of these kinds. Raises :class:`RequestError`, and, while it iterates,
    :class:`ChangesMissed` where the capped stream no longer has all that came after ``since``.
    """
    return Watch(ledger, since, block_s, frozenset(objects))
