"""The channel of updates: what is published there goes into the stream, and is taken from it like the rest.

A channel keeps nothing: what is published while nobody listens is lost.
"""

from __future__ import annotations

from redis.client import PubSub

from celery_allocator.errors import LedgerError
from celery_allocator.ledger import Ledger
from celery_allocator.updates.form import MAX_BYTES

#: Messages per step, so that the stream gets its turn.
_BATCH = 100


class Listener:
    """Listens for as long as its holder has the duty: two that listen would put everything into the stream twice."""

    def __init__(self) -> None:
        self._channel: PubSub | None = None

    def step(self, ledger: Ledger) -> int:
        """Put what has been published since into the stream; returns how many messages. The first step subscribes.

        Raises :class:`LedgerUnavailable`; the next step then subscribes anew.
        """
        if self._channel is None:
            self._channel = ledger.listen()
        count = 0
        try:
            while count < _BATCH and (message := ledger.heard(self._channel)) is not None:
                # Enough of one that is too large to be told so.
                ledger.send_update(message[: MAX_BYTES + 1])
                count += 1
        except LedgerError:
            self.retire()
            raise
        return count

    def retire(self) -> None:
        """Listen no more."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
