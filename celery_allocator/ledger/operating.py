"""The ledger as operators steer it: one script each; with a ``note``, the action is journalled in the same step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from celery_allocator.errors import ActionRefused, AllocationNotFound, EntryNotFound, LabelError, UnknownTargetError
from celery_allocator.ledger import journal, keys, replies, wire
from celery_allocator.ledger.access import Access
from celery_allocator.ledger.journal import Entry, Note, Operated, Page
from celery_allocator.ledger.replies import BreakerState, Grant
from celery_allocator.model import label

#: What an operator can put a node or a device into.
STATES = ("ready", "cordoned", "draining")


class Operating(Access):
    """The methods of operators. A ``note`` may make any of them raise :class:`ActionRefused`.

    ``publishes``: the caller publishes the grants that come back; else the next tick does.
    """

    # --- nodes, devices, the pool

    def cordon(
        self, target: str, *, drain: bool = False, publishes: bool = True, reason: str = ""
    ) -> tuple[tuple[Grant, ...], tuple[str, ...]]:
        """Stop granting on a node or ``node/device``. ``drain`` also takes back unstarted grants.

        ``reason``: what is told of it until it is ready again. Returns the grants made elsewhere and the ids of what
        still runs there. Raises :class:`UnknownTargetError`.
        """
        reply = self.set_state(target, "draining" if drain else "cordoned", publishes=publishes, reason=reason)
        return reply.grants, reply.held

    def uncordon(self, target: str, *, publishes: bool = True) -> tuple[Grant, ...]:
        """Grant on a node or device again. Raises :class:`UnknownTargetError`."""
        return self.set_state(target, "ready", publishes=publishes).grants

    @wire.reads("an allocation")
    def set_state(
        self,
        target: str,
        state: str | Mapping[str, Any],
        *,
        publishes: bool = True,
        note: Note | None = None,
        reason: str = "",
    ) -> Operated:
        """Make a node or ``node/device`` ``ready``, ``cordoned`` or ``draining``, or put it back into several states.

        A mapping gives the state of the node and of each device by name. ``reason``: why, where no ``note`` says it.
        Raises :class:`UnknownTargetError`, :class:`LabelError` for what is no state.
        """
        for given in state.values() if isinstance(state, Mapping) else [state]:
            if given not in STATES:
                raise LabelError("state", given, f"must be one of {', '.join(STATES)}")
        word, states = ("restore", json.dumps(dict(state))) if isinstance(state, Mapping) else (state, "")
        reply = self._noted(note, "cordon", target, word, "1" if publishes else "0", self._pack(note), states, reason)
        if reply[0] != b"ok":
            there = wire.cluster(self.pool, self._run("snapshot")).devices
            known = ", ".join(device.key for device in there) or "none"
            raise UnknownTargetError(f"no node or device {target!r}; known devices are: {known}")
        _, grants, held, entry = reply
        return Operated(journal.number(entry), replies.grants(grants), held=tuple(i.decode() for i in held))

    def pause(self, *, stop: bool, publishes: bool = True, note: Note | None = None) -> Operated:
        """Stop granting in the whole pool, or (``stop=False``) resume it. What is granted already starts and runs."""
        reply = self._noted(note, "pause", "1" if stop else "0", "1" if publishes else "0", self._pack(note))
        _, was, grants, entry = reply
        words = {True: "paused", False: "granting"}
        return Operated(journal.number(entry), replies.grants(grants), words[was == b"1"], words[stop])

    # --- allocations

    @wire.reads("the allocation")
    def prioritize(
        self, allocation_id: str, priority: int, *, place: Mapping[str, Any] | None = None, note: Note | None = None
    ) -> Operated:
        """Give what has not been granted another priority; its place in line follows.

        ``place``: what a journal entry says of the place it had, to put it back there. Raises
        :class:`AllocationNotFound`, :class:`ActionRefused` once it is granted.
        """
        reply = self._noted(note, "prioritize", allocation_id, priority, self._pack(note), _score(place))
        self._found(allocation_id, reply)
        if reply[0] == b"granted":
            raise ActionRefused(f"{allocation_id} is {reply[1].decode()}: its priority has no effect any more")
        return Operated(journal.number(reply[2]), was=str(int(reply[1])), becomes=str(priority))

    @wire.reads("the allocation")
    def front(
        self, allocation_id: str, *, place: Mapping[str, Any] | None = None, note: Note | None = None
    ) -> tuple[Operated, int, int]:
        """Move what has not been granted before the first in line. What comes later with a larger priority passes it.

        ``place``: as in :meth:`prioritize`. Returns its number in line before and after, too; 0: it is not in line (on
        hold, delayed). Raises :class:`AllocationNotFound`, :class:`ActionRefused` once it is granted.
        """
        reply = self._noted(note, "front", allocation_id, _score(place), self._pack(note))
        self._found(allocation_id, reply)
        if reply[0] == b"granted":
            raise ActionRefused(f"{allocation_id} is {reply[1].decode()}: it is not in line any more")
        state, was, becomes, entry = reply[1:]
        return Operated(journal.number(entry), was=state.decode(), becomes=state.decode()), int(was), int(becomes)

    def hold(
        self, allocation_id: str, *, by: str = "operator", publishes: bool = True, note: Note | None = None
    ) -> Operated:
        """Put what waits or is delayed on hold: it keeps its place, and is not granted.

        Raises :class:`AllocationNotFound`, :class:`ActionRefused` in any other state.
        """
        return self._hold(allocation_id, "hold", by, publishes, note)

    def unhold(self, allocation_id: str, *, publishes: bool = True, note: Note | None = None) -> Operated:
        """Let what is on hold go on. Raises :class:`AllocationNotFound`, :class:`ActionRefused` if it is not held."""
        return self._hold(allocation_id, "unhold", "", publishes, note)

    def restore(self, allocation_id: str, *, publishes: bool = True, note: Note) -> Operated:
        """Bring back what the note's entry ended, where it was. See ``restore.lua``.

        Raises :class:`ActionRefused` saying what is in its way.
        """
        reply = self._noted(note, "restore", allocation_id, "1" if publishes else "0", self._pack(note))
        verdict, *rest = reply
        if verdict == b"taken":
            device, ids = rest[0].decode(), ", ".join(i.decode() for i in rest[1])
            told = f"is taken: it is held by {ids}" if ids else "is not there any more: its node or device has shrunk"
            raise ActionRefused(f"the place of {allocation_id} on {device} {told}")
        if verdict == b"damaged":
            raise wire.damaged("journal entry", note.of, f"what it keeps of {allocation_id} is not whole")
        if verdict != b"ok":
            raise ActionRefused(_IN_THE_WAY[verdict].format(id=allocation_id, what=rest[0].decode() if rest else ""))
        state, grants, entry = rest
        return Operated(journal.number(entry), replies.grants(grants), "released", state.decode())

    # --- circuit breakers

    @wire.reads("what a breaker has set aside")
    def set_breaker(
        self,
        name: str,
        allows: int | None,
        memory: str = "",
        *,
        batch: int = 200,
        publishes: bool = True,
        note: Note | None = None,
    ) -> tuple[Operated, int]:
        """Let so many more tasks of a name be granted; ``None`` closes its breaker: as many as fit.

        Whose turn comes and may not be granted is set aside, on hold. Up to ``batch`` of those go on, as far as they
        are let. ``memory``: what the keeper of the breaker remembers of it. Returns how many are still set aside, too.
        """
        few = "" if allows is None else allows
        args = (label("task name", name), few, memory, batch, "1" if publishes else "0", self._pack(note))
        _, grants, left, entry = self._noted(note, "breaker", *args)
        return Operated(journal.number(entry), replies.grants(grants)), int(left)

    @wire.reads("a breaker")
    def breakers(self) -> tuple[BreakerState, ...]:
        """The breakers that are not closed, and those whose keeper remembers something, by task name."""
        return tuple(
            BreakerState(name.decode(), int(left) if left else None, memory.decode(), int(aside))
            for name, left, memory, aside in sorted(self._run("breakers"))
        )

    # --- the journal

    def journal(self, limit: int = 50, before: int | None = None) -> tuple[Entry, ...]:
        """Entries, latest first; only those before number ``before``. Without those that are damaged."""
        return self.journal_page(limit, before).entries

    def journal_page(self, limit: int = 50, before: int | None = None) -> Page:
        """The latest entries, and what else there is to know before one of them is undone."""
        return journal.page(self._run("journal", "", limit, "" if before is None else before))

    def entry(self, number: int) -> Entry:
        """One entry. Raises :class:`EntryNotFound`, :class:`LedgerError` if it is damaged."""
        _, rows, _ = self._run("journal", number, 1, "")
        if not rows:
            raise EntryNotFound(f"no entry {number} in the journal: it keeps the last {self.options.journal_maxlen}")
        return journal.entry(rows[0])

    @wire.reads("an idempotency key")
    def applied(self, once: str) -> int | None:
        """The entry of the action that was taken under this idempotency key in the last week; ``None`` if none was."""
        found = self._guard(self.client.get, keys.key(self.pool, "once", once))
        return None if found is None else int(found)

    # --- plumbing

    def _noted(self, note: Note | None, name: str, *args: Any) -> Any:
        reply = self._run(name, *args)
        journal.raise_refused(note, reply)
        return reply

    def _pack(self, note: Note | None) -> str:
        return "" if note is None else note.packed(self.options.journal_maxlen)

    def _hold(self, allocation_id: str, what: str, by: str, publishes: bool, note: Note | None) -> Operated:
        reply = self._noted(note, "hold", allocation_id, what, by, "1" if publishes else "0", self._pack(note))
        self._found(allocation_id, reply)
        state = reply[1].decode()
        if reply[0] == b"state":
            state = state.replace("_", " ")
            told = f"only what waits or is delayed can be put on hold; {allocation_id} is {state}"
            raise ActionRefused(told if what == "hold" else f"{allocation_id} is not on hold: it is {state}")
        return Operated(journal.number(reply[3]), replies.grants(reply[2]), was=state, becomes=reply[4].decode())

    @staticmethod
    def _found(allocation_id: str, reply: Any) -> None:
        if reply[0] == b"gone":
            raise AllocationNotFound(f"no live allocation {allocation_id!r}: it has ended or never was")


def _score(place: Mapping[str, Any] | None) -> str:
    """Score of a place in line, as the journal keeps it; empty where that is not said."""
    return "" if place is None else str(place.get("score", ""))


_IN_THE_WAY = {
    b"lost": "the journal keeps no record of {id} any more",
    b"alive": "{id} is there already: it is {what}",
    b"expired": "{id} has expired meanwhile",
    b"unsure": "the server has changed: what holds {what} is known when its workers have reported; try again then",
    b"offline": "the place of {id} is gone: {what} is offline",
}
