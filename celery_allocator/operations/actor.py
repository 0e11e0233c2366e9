"""Who acts, and why: what every journal entry says."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from celery_allocator.ledger import Entry, Note
from celery_allocator.model import label


@dataclass(frozen=True)
class Actor:
    """``name``: a person, token or system. ``source``: the way it came (``cli``, ``mcp``, ``updates``, ``python``).

    ``once``: an idempotency key; the same one again is refused as a duplicate. Raises :class:`LabelError` for a name
    that cannot be recorded.
    """

    name: str
    source: str = "python"
    reason: str = ""
    once: str = ""

    def __post_init__(self) -> None:
        label("actor", self.name)
        label("source", self.source)
        label("reason", self.reason, empty=True)
        label("idempotency key", self.once, empty=True)

    @classmethod
    def of_process(cls, source: str = "python", reason: str = "") -> Actor:
        """This process's user on this host."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a user id without a name, in a container
            user = "unknown"
        return cls(f"{user}@{socket.gethostname()}", source, reason)

    def note(self, action: str, args: Mapping[str, Any], batch: str = "") -> Note:
        """For doing ``action``; with others of the same ``batch``."""
        return Note(action, args, self.name, self.reason, self.source, batch, self.once)

    def note_again(self, way: str, entry: Entry, seen: int, *, last: bool, keeps_place: bool) -> Note:
        """For undoing or redoing ``entry``, decided on when ``seen`` actions had been taken.

        ``last``: it is the one that was asked for, and what the idempotency key stands for. ``keeps_place``: see
        :class:`Note`.
        """
        note = self.note(entry.action, entry.args)
        return replace(note, final=last, way=way, of=entry.number, seen=seen, keeps_place=keeps_place)
