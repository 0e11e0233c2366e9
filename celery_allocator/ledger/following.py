"""The event stream as a recorder reads it: by a consumer group, so that the server knows what has been recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from celery_allocator.ledger import keys
from celery_allocator.ledger.access import Access


@dataclass(frozen=True)
class Delivery:
    """Entries in the order of the stream, each an id and its fields; ``None`` for fields that were trimmed since."""

    entries: tuple[tuple[str, dict[str, str] | None], ...]
    #: How many follow.
    lag: int


@dataclass(frozen=True)
class Unacknowledged:
    """So many entries were read and not acknowledged: they come first."""

    entries: int


@dataclass(frozen=True)
class Missed:
    """Entries were trimmed before they were read: ``entries`` of them, after ``after`` and before ``before``.

    ``trimmed``: how many the stream has trimmed in all; given to the next :meth:`Following.read_events`, it reads on.
    """

    entries: int
    after: str
    before: str
    trimmed: int


class Following(Access):
    """The methods of recorders. One consumer at a time reads for a group; who that is, its readers settle."""

    def open_group(self, group: str, *, newest: bool = False) -> bool:
        """Make a consumer group that begins with the oldest entry, or with the next one that comes (``newest``).

        Returns whether there was none.
        """
        stream = keys.key(self.pool, "events")
        # What was trimmed by now is no entry that this group misses.
        info: Any = self._guard(_or_none, self.client.xinfo_stream, stream) or {}
        added = int(info.get("entries-added", 0))
        first, read = ("$", added) if newest else ("0", added - int(info.get("length", 0)))
        command = ("XGROUP", "CREATE", stream, group, first, "MKSTREAM", "ENTRIESREAD", read)
        return self._guard(_or_none, self.client.execute_command, *command) is not None

    def read_events(
        self, group: str, consumer: str, count: int, *, unacknowledged: bool = False, accepted: int = 0
    ) -> Delivery | Unacknowledged | Missed | None:
        """Read on, at most ``count`` entries; ``None`` if there is no such group.

        Nothing new is read before what was read is acknowledged (``unacknowledged``: read that again, from its start),
        nor where entries were missed, before that was ``accepted`` (see :class:`Missed`).
        """
        what = "unacknowledged" if unacknowledged else "new"
        reply = self._run("read_events", group, consumer, count, what, accepted)
        verdict = reply[0]
        if verdict == b"read":
            # What is no UTF-8 becomes readable here, and nothing else does.
            entries = json.loads(reply[1].decode(errors="replace"))
            return Delivery(tuple((entry_id, _fields(flat)) for entry_id, flat in entries), int(reply[2]))
        if verdict == b"unacknowledged":
            return Unacknowledged(int(reply[1]))
        if verdict == b"missed":
            return Missed(int(reply[1]), reply[2].decode(), reply[3].decode(), int(reply[4]))
        return None

    def acknowledge(self, group: str, entry_ids: Sequence[str]) -> None:
        """These entries are dealt with for good."""
        if entry_ids:
            self._guard(self.client.xack, keys.key(self.pool, "events"), group, *entry_ids)

    def has_event(self, entry_id: str) -> bool:
        """Whether the stream still holds that entry."""
        found: Any = self._guard(self.client.xrange, keys.key(self.pool, "events"), entry_id, entry_id)
        return bool(found)


def _or_none(function: Any, *args: Any) -> Any:
    """``None`` where there is no stream, or a group of that name is there already."""
    try:
        return function(*args)
    except ResponseError as error:
        if "no such key" in str(error) or "BUSYGROUP" in str(error):
            return None
        raise


def _fields(flat: Any) -> dict[str, str] | None:
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else None
