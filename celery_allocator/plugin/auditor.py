"""The auditor: has the ledger look at a part of itself with every tick, and tells of what is wrong."""

from __future__ import annotations

import logging
import time

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.ledger import Ledger

logger = logging.getLogger(__name__)

#: Seconds until a difference that is still there is told of again.
_TELL_AGAIN_S = 600.0


class Auditor:
    """Of one pool. Used by the keeper's thread alone."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        #: Differences, and when each was told of.
        self._told: dict[str, float] = {}

    def look(self, ledger: Ledger) -> None:
        """Look at the next part. Raises :class:`LedgerUnavailable`; damage that stops even the look is told of."""
        try:
            found = ledger.audit()
        except LedgerUnavailable:
            raise
        except AllocatorError as error:
            found = [str(error)]
        now = time.monotonic()
        self._told = {text: at for text, at in self._told.items() if now - at < _TELL_AGAIN_S}
        for difference in found:
            if difference not in self._told:
                self._told[difference] = now
                logger.error(
                    "the ledger of pool %s contradicts itself: %s (celery-allocator verify tells all, "
                    "--repair mends it)",
                    self._pool,
                    difference,
                )
