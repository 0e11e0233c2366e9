"""The intake of updates: takes each from its stream, has it done, and answers it once.

An update may be handed out again after whoever had it died at any point. What it means is written down before the first
action; each action has an idempotency key of its own in the journal; and the reply, the end of the update in its stream
and what is remembered of it are one step of the ledger.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from celery_allocator.errors import (
    AllocatorError,
    DuplicateAction,
    EntryNotFound,
    LedgerUnavailable,
    UpdateError,
)
from celery_allocator.ledger import Ledger
from celery_allocator.operations import Actor, Command, Effect, Operator, command
from celery_allocator.updates.form import MAX_BYTES, Reply, Update
from celery_allocator.updates.meaning import meaning

logger = logging.getLogger(__name__)

#: What the journal says of where these actions come from.
SOURCE = "updates"
#: Updates per read.
_BATCH = 50


class Intake:
    """Takes updates. ``settle`` is told of every effect: it publishes grants, writes results (see :class:`Operator`).

    ``alive`` is called between actions, so that a long update does not outlive its holder's lease.
    """

    def __init__(
        self, settle: Callable[[Effect], None] | None = None, alive: Callable[[Ledger], object] = lambda _: None
    ) -> None:
        self._settle = settle
        self._alive = alive

    def step(self, ledger: Ledger, block_s: float = 0.0) -> int:
        """Answer what there is, the oldest first; wait up to ``block_s`` seconds for the first. Returns how many.

        Raises :class:`LedgerUnavailable`: what is not answered then is handed out again.
        """
        # What was handed out before comes first: to a predecessor, or in a reply that never arrived.
        rows = ledger.updates(_BATCH, new=False) or ledger.updates(_BATCH, new=True, block_s=block_s)
        for update_id, fields in rows:
            self._take(ledger, update_id, fields)
            self._alive(ledger)
        return len(rows)

    def _take(self, ledger: Ledger, update_id: str, fields: dict[bytes, bytes]) -> None:
        body = fields.get(b"update", b"")
        try:
            update = _read(fields)
        except UpdateError as error:
            reply = Reply(update_id, "malformed", reason=str(error), code=error.code)
            ledger.answer(update_id, reply.as_dict(), error=str(error), body=body[: MAX_BYTES + 1])
            return
        try:
            self._answer(ledger, update_id, update)
        except LedgerUnavailable:
            raise
        except Exception as error:
            # It would come again and again, and nothing behind it ever.
            if not isinstance(error, AllocatorError):
                logger.exception("update %s: unexpected error", update_id)
            code = error.code if isinstance(error, AllocatorError) else "internal_error"
            self._done(ledger, update, _reply(update_id, update, "rejected", reason=str(error)[:1000], code=code))

    def _answer(self, ledger: Ledger, update_id: str, update: Update) -> None:
        memo = ledger.remembered(update.idempotency_key)
        if memo is not None and memo.get("digest") != update.digest():
            reason = f"the key {update.idempotency_key!r} stands for another update, {memo.get('update')}"
            again = _reply(update_id, update, "rejected", reason=reason, code="key_reused")
            ledger.answer(update_id, again.as_dict())
            return
        if memo is not None and "reply" in memo:
            answered: dict[str, Any] = memo["reply"]
            said = {**answered, "update": update_id, "status": "duplicate", "first": answered["update"]}
            ledger.answer(update_id, said)
            return
        if memo is None:
            meant = meaning(update, ledger)
            plan = [[one.action, one.as_args()] for one in meant.commands]
            memo = {"update": update_id, "digest": update.digest(), "plan": plan}
            memo = ledger.remember(update.idempotency_key, {**memo, "unchanged": meant.unchanged, "each": meant.each})
        # Else it was begun by somebody who did not come to answer it: what it meant then is gone through again.
        commands = [command(action, args) for action, args in memo["plan"]]
        reply = self._apply(ledger, update_id, update, commands, each=memo["each"])
        self._done(ledger, update, _reply(update_id, update, unchanged=memo["unchanged"], **reply))

    def _apply(
        self, ledger: Ledger, update_id: str, update: Update, commands: Iterable[Command], *, each: bool
    ) -> dict[str, Any]:
        """Run the commands. Returns what the reply says of that."""
        todo = list(commands)
        entries: list[int] = []
        skipped = 0
        for one in todo:
            once = update.idempotency_key if len(todo) == 1 else _part(update.idempotency_key, one)
            actor = Actor(update.actor, SOURCE, f"update {update_id}", once)
            self._alive(ledger)
            try:
                entry = Operator(ledger, actor, self._settle).run(one).entry
            except LedgerUnavailable:
                raise
            except DuplicateAction as error:
                # Done by this very update before, or by somebody else who chose the same key.
                if not _is_ours(ledger, error.entry, actor):
                    return {"status": "duplicate", "reason": str(error), "code": error.code, "entries": [error.entry]}
                entry = error.entry
            except AllocatorError as error:
                if each:
                    skipped += 1
                    continue
                status = "partial" if entries else "rejected"
                return {"status": status, "reason": str(error), "code": error.code, "entries": entries}
            if entry is not None:
                entries.append(entry)
        return {"status": "applied", "entries": entries, "skipped": skipped}

    @staticmethod
    def _done(ledger: Ledger, update: Update, reply: Reply) -> None:
        said = reply.as_dict()
        memo = {"update": reply.update, "digest": update.digest(), "reply": said}
        ledger.answer(reply.update, said, key=update.idempotency_key, memo=memo)


def _read(fields: dict[bytes, bytes]) -> Update:
    if set(fields) != {b"update"}:
        named = ", ".join(sorted(ascii(name.decode(errors="replace")) for name in fields)) or "none"
        raise UpdateError(f"the entry has the fields {named[:200]}: it must have one, update, with JSON")
    return Update.parse(fields[b"update"])


def _reply(update_id: str, update: Update, status: str, **said: Any) -> Reply:
    about = {"object": update.object, "id": update.id, "op": update.op, "actor": update.actor}
    said["entries"] = tuple(said.get("entries", ()))
    return Reply(update_id, status, update.idempotency_key, about=about, **said)


def _part(key: str, one: Command) -> str:
    """An idempotency key for one of several actions of an update."""
    named = "\n".join([one.action, *map(str, one.as_args().values())])
    return f"{key}:{hashlib.sha256(named.encode(errors='backslashreplace')).hexdigest()[:32]}"


def _is_ours(ledger: Ledger, number: int, actor: Actor) -> bool:
    try:
        entry = ledger.entry(number)
    except EntryNotFound:  # so many actions later: nobody can tell any more
        return True
    return (entry.source, entry.reason) == (actor.source, actor.reason)
