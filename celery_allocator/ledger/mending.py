"""The ledger's own health: what is wrong in it, how that is mended, and messages that cannot be read."""

from __future__ import annotations

from celery_allocator.errors import AllocationNotFound, StaleTokenError
from celery_allocator.ledger import replies, wire
from celery_allocator.ledger.access import Access
from celery_allocator.ledger.replies import Grant, Parked


class Mending(Access):
    """The methods of operators and keepers."""

    def verify(self) -> list[str]:
        """Recompute everything from the allocations; each difference as a sentence. Empty when the ledger is right."""
        return [line.decode(errors="backslashreplace") for line in self._run("verify")]

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


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
