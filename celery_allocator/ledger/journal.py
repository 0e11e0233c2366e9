"""The journal of operator actions: what is written with an action, and what is read of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from celery_allocator.errors import ActionRefused, DuplicateAction, JournalMoved, LedgerError
from celery_allocator.ledger import wire
from celery_allocator.ledger.replies import Grant

DONE, UNDONE = "done", "undone"


@dataclass(frozen=True)
class Note:
    """Who does what, and why: written into the journal in the same step as the action.

    ``batch``: a label that actions taken together share.

    ``way``: ``do``, or ``undo`` or ``redo`` of entry ``of``. ``once``: an idempotency key, remembered for a week.
    ``seen``: how many actions had been taken when this one was decided on; any since then, and it is refused.
    ``keeps_place``: redone, the entry stands among the others where it stood before. ``final``: the key stands for
    this action; else it is only refused if the key is known, and a later step leaves it.
    """

    action: str
    args: Mapping[str, Any] = field(default_factory=dict)
    actor: str = ""
    reason: str = ""
    source: str = ""
    batch: str = ""
    once: str = ""
    way: str = "do"
    of: int | None = None
    seen: int | None = None
    keeps_place: bool = False
    final: bool = True

    def packed(self, keep: int) -> str:
        """As the scripts read it, for one call. ``keep``: entries that the journal keeps."""
        values = {key: "" if value is None else value for key, value in asdict(self).items()}
        return json.dumps(
            {**values, "args": dict(self.args), "of": str(values["of"]), "keep": keep, "call": uuid.uuid4().hex}
        )


@dataclass(frozen=True)
class Entry:
    """One action in the journal. Times: seconds since the epoch on the ledger's clock.

    ``objects``: what it touched, such as ``node:n1``, ``device:n1/gpu_0``, ``allocation:alloc_…``, ``pool``. ``state``:
    ``done`` or ``undone``. ``done_op``: its place among all actions, undos and redos, which are
    counted; ``undone_op``: that of its last undo. ``restorable``: it keeps the record of what it ended. ``batch``: a
    label that it shares with those it was taken together with; empty: it was taken alone.
    """

    number: int
    action: str
    args: Mapping[str, Any]
    objects: tuple[str, ...]
    actor: str
    reason: str
    source: str
    at: float
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    state: str
    done_op: int
    undone_op: int | None = None
    undone_at: float | None = None
    undone_by: str = ""
    undone_reason: str = ""
    restorable: bool = False
    batch: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {**asdict(self), "objects": list(self.objects)}


@dataclass(frozen=True)
class Page:
    """Entries of the journal, latest first. ``seen``: how many actions have been taken so far.

    ``damage``: what is wrong with those that cannot be read. ``dropped``: the place of the last one in force that is
    not remembered any more; what was taken before it may be what that one stands on.
    """

    seen: int
    entries: tuple[Entry, ...]
    damage: tuple[str, ...] = ()
    dropped: int = 0


@dataclass(frozen=True)
class Operated:
    """Reply of an operator's action. ``entry``: its number in the journal; ``None`` where it was not written there.

    ``was``: the state before. ``held``: ids of what a cordoned place still holds.
    """

    entry: int | None
    grants: tuple[Grant, ...] = ()
    was: str = ""
    becomes: str = ""
    held: tuple[str, ...] = ()


def raise_refused(note: Note | None, reply: Any) -> None:
    """Raise what the scripts refuse a note with (see ``_journal.lua``)."""
    if note is None or not isinstance(reply, list) or not reply or not isinstance(reply[0], bytes):
        return
    if reply[0] == b"duplicate":
        raise DuplicateAction(note.once, int(reply[1]))
    if reply[0] == b"moved":
        raise JournalMoved("another action was taken meanwhile")
    if reply[0] == b"entry":
        state = reply[1].decode()
        told = {"gone": "is not in the journal any more", DONE: "is in force", UNDONE: "is undone already"}
        raise ActionRefused(f"cannot {note.way} entry {note.of}: it {told.get(state, state)}")


def number(value: Any) -> int | None:
    """An entry's number in a reply; ``None`` for an empty one."""
    return int(value) if value not in (b"", "", None) else None


def entry(row: list[Any]) -> Entry:
    """One row of ``journal.lua``'s reply. Raises :class:`LedgerError` naming a damaged one."""
    try:
        return _entry(row)
    except wire.DAMAGE as error:
        raise wire.damaged("journal entry", row[0], error) from error


def page(reply: Any) -> Page:
    """The reply of ``journal.lua``."""
    ops, rows, dropped = reply
    entries, damage = [], []
    for row in rows:
        try:
            entries.append(entry(row))
        except LedgerError as error:
            damage.append(str(error))
    return Page(int(ops), tuple(entries), tuple(damage), int(dropped))


def _entry(row: list[Any]) -> Entry:
    no, restorable, *texts = row
    action, args, objects, actor, reason, source, at, before, after, state, done, undone, undone_at, by, why, batch = (
        text.decode() for text in texts
    )
    if not (action and objects and state in (DONE, UNDONE)) or (state == UNDONE and not undone):
        raise ValueError("fields are missing")
    return Entry(
        number=int(no),
        action=action,
        args=_mapping(args),
        objects=tuple(objects.split("\n")),
        actor=actor,
        reason=reason,
        source=source,
        at=int(at) / 1000,
        before=_mapping(before),
        after=_mapping(after),
        state=state,
        done_op=int(done),
        undone_op=int(undone) if undone else None,
        undone_at=int(undone_at) / 1000 if undone_at else None,
        undone_by=by,
        undone_reason=why,
        restorable=bool(restorable),
        batch=batch,
    )


def _mapping(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError(f"{text[:40]} is no object")
    return found
