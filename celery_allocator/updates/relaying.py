"""The relay: copies changes into a stream and a channel, for systems that do not follow the event stream themselves."""

from __future__ import annotations

from typing import Any

from celery_allocator.ledger import Ledger
from celery_allocator.updates.changes import ALLOCATOR, Change, change

#: Entries per read.
_BATCH = 500


class Relay:
    """Copies what has come since the last change that was copied. One at a time; two of them do no harm."""

    def __init__(self) -> None:
        self._at: str | None = None

    def step(self, ledger: Ledger, block_s: float = 0.0) -> int:
        """Copy what there is, or comes within ``block_s`` seconds; returns how many entries were looked at."""
        if self._at is None:
            self._at = ledger.relayed()
        rows, sure = ledger.events_after(self._at, _BATCH, block_s)
        if not rows:
            return 0
        changes = [] if sure else [_missed(self._at, rows[0][0])]
        changes += [found for found in (change(at, event) for at, event in rows) if found is not None]
        ledger.relay((one.position, one.as_dict()) for one in changes)
        # Also beyond what was left out, which would be read again and again.
        self._at = rows[-1][0]
        return len(rows)

    def retire(self) -> None:
        """Somebody else relays now: where this one stood is of no use any more."""
        self._at = None


def _missed(position: str, oldest: str) -> Change:
    """In the place of what the capped stream has lost: a mirror has to read the whole state anew."""
    ms, seq = position.split("-")
    told: dict[str, Any] = {"event": "missed", "after": position, "before": oldest}
    return Change("setting", "changes", "update", told, ALLOCATOR, f"{ms}-{int(seq) + 1}")
