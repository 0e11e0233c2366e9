"""The ledger's streams that other systems write to and read: updates, their replies, changes.

An update is taken from its stream by a consumer group with one consumer, which is whoever has the duty ``updates``: so
what one that died has left behind is simply the next one's to finish.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from redis.client import PubSub
from redis.exceptions import ResponseError

from celery_allocator.errors import UpdateNotFound
from celery_allocator.ledger import keys, wire
from celery_allocator.ledger.access import Access

#: Name of the group of consumers, and of the one consumer in it.
GROUP = CONSUMER = "allocator"
#: Replies, and unreadable updates, that are kept.
REPLIES, PARKED = 10_000, 1_000
#: Milliseconds for which an idempotency key is remembered: a week, as in the journal.
_REMEMBERED_MS = 604_800_000

#: One entry of a stream: its id and its fields.
Row = tuple[str, dict[bytes, bytes]]


class Updating(Access):
    """The methods of who takes updates, and of who follows changes."""

    # --- updates

    def send_update(self, body: bytes) -> str:
        """Put an update into the stream, as other systems do; returns its id there."""
        sent: Any = self._guard(self.client.execute_command, "XADD", self._key("updates"), "*", "update", body)
        return str(sent.decode())

    def updates(self, count: int, *, new: bool, block_s: float = 0.0) -> list[Row]:
        """Updates to be answered: those handed out before and not answered yet, or (``new``) others.

        For new ones it waits up to ``block_s`` seconds.
        """
        return _rows(self._guard(self._read_group, count, new, block_s))

    def remembered(self, key: str) -> dict[str, Any] | None:
        """What is remembered under an idempotency key of an update."""
        text: Any = self._guard(self.client.get, self._key("updated", key))
        found = _loaded(text) if text else None
        return found if isinstance(found, dict) else None

    def remember(self, key: str, memo: Mapping[str, Any]) -> dict[str, Any]:
        """Remember ``memo`` under an idempotency key, unless something is already; returns what is remembered now."""

        def put() -> Any:
            return self.client.set(self._key("updated", key), json.dumps(memo), nx=True, px=_REMEMBERED_MS)

        if self._guard(put):
            return dict(memo)
        return self.remembered(key) or dict(memo)

    def answer(
        self,
        update_id: str,
        reply: Mapping[str, Any],
        *,
        key: str = "",
        memo: Mapping[str, Any] | None = None,
        error: str = "",
        body: bytes = b"",
    ) -> bool:
        """Write an update's reply, and forget it; with ``error`` its ``body`` is kept for an operator.

        ``memo``: what is remembered under its idempotency ``key``. False if it has been answered already.
        """
        remembered = "" if memo is None else json.dumps(memo)
        args = (update_id, GROUP, key, remembered, json.dumps(reply), REPLIES, error, body, PARKED, _REMEMBERED_MS)
        return bool(self._run("answer", *args))

    def replies(self, since: str = "-", count: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """Replies after the entry ``since`` of their stream, each with its own entry's id."""
        return [(at, _loaded(row.get(b"reply", b""))) for at, row in self._range("replies", since, count)]

    def newest_reply(self) -> str:
        """Id of the latest entry in the stream of replies; ``0-0`` while there is none."""
        return self._latest("replies")

    def parked_updates(self, count: int = 100) -> list[tuple[str, dict[str, str]]]:
        """Updates that could not be read, oldest first: ``from``, ``at`` (ms), ``error``, ``update``."""
        return [(at, texts(row)) for at, row in self._range("refused", "-", count)]

    def readmit(self, parked_id: str, *, retry: bool) -> str:
        """Put a parked update into the stream again (returns its id there), or forget it (returns ``""``).

        Raises :class:`UpdateNotFound`.
        """
        known = wire.ENTRY_ID.fullmatch(parked_id)
        reply = self._run("readmit", parked_id, "retry" if retry else "discard") if known else None
        if reply is None or reply[0] != b"ok":
            raise UpdateNotFound(f"no update {parked_id!r} is parked")
        return str(reply[1].decode())

    # --- the channel of updates

    def listen(self) -> PubSub:
        """A subscription to the channel of updates, on a connection of its own."""
        channel: PubSub = self.client.pubsub(ignore_subscribe_messages=True)
        self._guard(channel.subscribe, self._key("updates"))
        return channel

    def heard(self, channel: PubSub) -> bytes | None:
        """The next message that has come, or ``None``."""
        # Without waiting it returns None also for the confirmation of its own subscription.
        for _ in range(2):
            message: Any = self._guard(channel.get_message, True, 0.0)
            if message is not None and isinstance(message.get("data"), bytes):
                return bytes(message["data"])
        return None

    # --- changes

    def position(self) -> str:
        """Id of the latest entry of the event stream; ``0-0`` while there is none."""
        return self._latest("events")

    def relayed(self) -> str:
        """Id of the latest change in the stream of changes; ``0-0`` while there is none."""
        return self._latest("changes")

    def relay(self, changes: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
        """Copy changes (entry id, what changed) into their stream and tell their channel; returns how many were new."""
        args = [part for at, change in changes for part in (at, json.dumps(change))]
        return int(self._run("relay", *args)) if args else 0

    def events_after(self, position: str, count: int, block_s: float = 0.0) -> tuple[list[tuple[str, Any]], bool]:
        """Entries of the event stream after ``position``, and whether it is sure that none in between are gone.

        Waits up to ``block_s`` seconds for one. ``0-0``: from the oldest that is kept.
        """
        events = self._key("events")

        def read() -> Any:
            command: list[Any] = ["XREAD", "COUNT", count]
            command += ["BLOCK", max(1, round(block_s * 1000))] if block_s > 0 else []
            return self.client.execute_command(*command, "STREAMS", events, position)

        found = [(at, texts(row)) for at, row in _rows(self._guard(read))]
        # The entry itself is still there, after the others were read: so were all behind it.
        sure = not found or position == "0-0" or bool(self._guard(self.client.xrange, events, position, position))
        return found, sure

    # --- plumbing

    def _key(self, name: str, member: str = "") -> str:
        return keys.key(self.pool, name, member)

    def _latest(self, name: str) -> str:
        rows: Any = self._guard(self.client.xrevrange, self._key(name), "+", "-", 1)
        return rows[0][0].decode() if rows else "0-0"

    def _range(self, name: str, since: str, count: int) -> list[Row]:
        rows: Any = self._guard(self.client.xrange, self._key(name), wire.after(since), "+", count)
        return [(at.decode(), fields) for at, fields in rows]

    def _read_group(self, count: int, new: bool, block_s: float) -> Any:
        command: list[Any] = ["XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", count]
        command += ["BLOCK", max(1, round(block_s * 1000))] if new and block_s > 0 else []
        command += ["STREAMS", self._key("updates"), ">" if new else "0"]
        try:
            return self.client.execute_command(*command)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
        try:
            self.client.execute_command("XGROUP", "CREATE", self._key("updates"), GROUP, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        return self.client.execute_command(*command)


def _rows(reply: Any) -> list[Row]:
    """The entries of the one stream that was read, in any of the forms that redis-py gives them."""
    if not reply:
        return []
    if isinstance(reply, dict):  # RESP3
        ((rows,),) = reply.values()
    else:
        ((_, rows),) = reply
    # An entry that somebody deleted has no fields any more.
    return [(at.decode(), fields or {}) for at, fields in rows]


def texts(row: Mapping[bytes, bytes]) -> dict[str, str]:
    """An entry's fields as text; what is no UTF-8 becomes readable."""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in row.items()}


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # somebody else wrote there
        return {}
