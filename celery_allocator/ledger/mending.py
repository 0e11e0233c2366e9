"""The ledger's own health: what is wrong in it, how that is mended, and messages that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import NoPermissionError

from celery_allocator.errors import AllocationNotFound, LedgerError, LedgerUnavailable, StaleTokenError
from celery_allocator.ledger import keys, replies, wire
from celery_allocator.ledger.access import Access
from celery_allocator.ledger.replies import Grant, Parked, Repaired


class Mending(Access):
    """The methods of operators and keepers."""

    def verify(self) -> list[str]:
        """Recompute everything from the allocations; each difference as a sentence. Empty when the ledger is right.

        For a user of the server who may not SCAN it, records that nothing names stay unseen.
        """
        try:
            recorded = self._recorded()
        except LedgerError as error:
            if not isinstance(error.__cause__, NoPermissionError):
                raise
            recorded = []
        return [_text(line) for line in self._run("verify", *recorded)]

    def audit(self) -> list[str]:
        """A small part of :meth:`verify`, cheap enough for every tick; another part each time."""
        return [_text(line) for line in self._run("audit")]

    def repair(self) -> Repaired:
        """Rebuild everything that is counted from the allocations' records. What is held and what waits stays so."""
        try:
            found = self.verify()
        except LedgerUnavailable:
            raise
        except LedgerError as error:  # damage that stops even that
            found = [str(error)]
        left, granted = self._run("repair", *self._recorded())
        return Repaired(tuple(found), (*(_text(line) for line in left), *self.verify()), replies.grants(granted))

    def park(
        self, allocation_id: str, reason: str, token: int | None = None, *, publishes: bool = True
    ) -> tuple[Grant, ...]:
        """Take a task whose message cannot be read from its place, and keep it aside with ``reason``.

        Its result (FAILURE) is still to be written, by the next tick. Raises :class:`AllocationNotFound`,
        :class:`StaleTokenError`.
        """
        live = "" if token is None else token
        reply = self._run("park", allocation_id, live, reason[:1000], "1" if publishes else "0")
        if reply[0] == b"stale":
            raise StaleTokenError(f"{allocation_id}: token {token} is not the live one ({reply[1].decode()})")
        if reply[0] != b"ok":
            raise AllocationNotFound(f"{allocation_id} has ended or never was")
        return replies.grants(reply[1])

    @wire.reads("a parked message")
    def parked(self, limit: int = 100, offset: int = 0) -> tuple[Parked, ...]:
        """Parked messages, oldest first."""
        rows = self._run("parked", offset, limit)
        return tuple(
            Parked(_text(row[0]), _text(row[1]), _text(row[2]), _text(row[3]), float(row[4]) / 1000, row[5])
            for row in rows
        )

    def unpark(self, allocation_id: str, *, requeue: bool, publishes: bool = True) -> tuple[Grant, ...]:
        """Put a parked message into line again, or forget it. Raises :class:`AllocationNotFound`."""
        reply = self._run("unpark", allocation_id, "requeue" if requeue else "discard", "1" if publishes else "0")
        if reply[0] != b"ok":
            raise AllocationNotFound(f"no message of {allocation_id!r} is parked")
        return replies.grants(reply[1])

    def learn(self, known_s: Mapping[str, float | Sequence[float]], *, overwrite: bool = False) -> tuple[str, ...]:
        """Set what is known of run times, by task name (``*``: all). What it has learned itself stays.

        Of each name a mean in seconds, or some run times, oldest first: then it knows their quantiles, too.
        ``overwrite``: also of names of which it has learned something. Returns the names that were set.
        """
        set_: list[str] = []
        for name, known in known_s.items():  # one script each: some hundred run times take it a few milliseconds
            told = ("mean", repr(known * 1000)) if isinstance(known, (int, float)) else ("runs", _ms_list(known))
            if told[1]:
                decay = self.options.runtime_decay
                set_ += map(_text, self._run("learn", "1" if overwrite else "0", decay, name, *told))
        return tuple(set_)

    def learned(self) -> dict[str, float]:
        """Mean run times in seconds, by task name; ``*``: all."""
        return {_text(name): int(mean) / 1000 for name, size, _runs, mean, *_ in self._run("learned") if not size}

    def recorded_of(self, allocation_ids: Sequence[str]) -> set[str]:
        """Which of these allocations the ledger has a record of."""
        found: set[str] = set()
        for start in range(0, len(allocation_ids), 1000):
            chunk = allocation_ids[start : start + 1000]
            with self.client.pipeline(transaction=False) as pipeline:
                for allocation_id in chunk:
                    pipeline.exists(keys.key(self.pool, "alloc", allocation_id))
                there: Any = self._guard(pipeline.execute)
            found.update(name for name, exists in zip(chunk, there, strict=True) if exists)
        return found

    def _recorded(self) -> list[bytes]:
        """Ids of all records, also of those that nothing names."""
        prefix = keys.key(self.pool, "alloc")

        def scan() -> list[bytes]:
            found = self.client.scan_iter(f"{_literal(prefix)}*", count=1000)
            return [key[len(prefix.encode()) :] for key in found]

        recorded: list[bytes] = self._guard(scan)
        return recorded


def _literal(text: str) -> str:
    """As a pattern that matches only itself: a pool's name may hold what patterns give a meaning."""
    return "".join(f"\\{char}" if char in "*?[]^\\" else char for char in text)


def _ms_list(runs_s: Sequence[float]) -> str:
    return " ".join(f"{run * 1000:.0f}" for run in runs_s)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
