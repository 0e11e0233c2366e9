"""Every operator action as a command: what it does, and how that is undone and redone.

A command is made from plain values, and its journal entry holds these (``args``), so that it can be redone from the
journal alone. Undoing looks at the entry's ``before``; nothing else is remembered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from celery_allocator.errors import ActionRefused, RequestError, RequirementsError
from celery_allocator.ledger import Entry, Ledger, Note, Operated
from celery_allocator.model import FIELDS, Kind, label
from celery_allocator.operations.effect import Effect


@dataclass(frozen=True)
class Step:
    """Where and how a command is carried out. ``publishes``: the caller publishes the grants that come back.

    ``entry``: what is undone or redone.
    """

    ledger: Ledger
    note: Note
    publishes: bool
    entry: Entry | None = None

    @property
    def before(self) -> Mapping[str, Any]:
        """How it was before the action that is undone."""
        assert self.entry is not None
        return self.entry.before


@dataclass(frozen=True)
class Command(ABC):
    """One operator action."""

    action: ClassVar[str]

    @abstractmethod
    def do(self, at: Step) -> Effect:
        """Take the action. Raises :class:`ActionRefused` and what the ledger raises; then nothing has changed."""

    @abstractmethod
    def undo(self, at: Step) -> Effect:
        """Take it back. Raises as :meth:`do`."""

    def redo(self, at: Step) -> Effect:
        """Take it again after it was undone."""
        return self.do(at)

    def as_args(self) -> dict[str, Any]:
        """The values it was made from."""
        return asdict(self)


@dataclass(frozen=True)
class _State(Command):
    """Puts a node or device (``target``: ``node`` or ``node/device``) into a state."""

    state: ClassVar[str]
    target: str

    def do(self, at: Step) -> Effect:
        done = at.ledger.set_state(self.target, self.state, publishes=at.publishes, note=at.note)
        return Effect(done.entry, f"{self.target} is {self.state}", done.grants, held=done.held)

    def undo(self, at: Step) -> Effect:
        done = at.ledger.set_state(self.target, at.before, publishes=at.publishes, note=at.note)
        states = ", ".join(f"{name} {state}" for name, state in sorted(at.before.items()))
        return Effect(done.entry, f"as before: {states}", done.grants, held=done.held)


class Cordon(_State):
    """Grant nothing new on a node or device; what it holds goes on."""

    action, state = "cordon", "cordoned"


class Drain(_State):
    """Grant nothing new, and take back what has not started."""

    action, state = "drain", "draining"


class Uncordon(_State):
    """Grant on a node or device again."""

    action, state = "uncordon", "ready"


@dataclass(frozen=True)
class _Granting(Command):
    stop: ClassVar[bool]

    def do(self, at: Step) -> Effect:
        done = at.ledger.pause(stop=self.stop, publishes=at.publishes, note=at.note)
        return Effect(done.entry, f"the pool is {done.becomes}", done.grants)

    def undo(self, at: Step) -> Effect:
        done = at.ledger.pause(stop=bool(at.before["paused"]), publishes=at.publishes, note=at.note)
        return Effect(done.entry, f"the pool is {done.becomes}", done.grants)


class Pause(_Granting):
    """Stop granting in the whole pool."""

    action, stop = "pause", True


class Resume(_Granting):
    """Grant in the pool again."""

    action, stop = "resume", False


@dataclass(frozen=True)
class Priority(Command):
    """Give an allocation that has not been granted another priority."""

    action = "priority"
    allocation_id: str
    priority: int

    def __post_init__(self) -> None:
        bounds = FIELDS["priority"]
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise RequirementsError("priority", self.priority, "must be a whole number")
        if not bounds.minimum <= self.priority <= bounds.maximum:
            raise RequirementsError("priority", self.priority, f"must be from {bounds.minimum} to {bounds.maximum}")

    def do(self, at: Step) -> Effect:
        done = at.ledger.prioritize(self.allocation_id, self.priority, note=at.note)
        return Effect(done.entry, f"{self.allocation_id} has priority {done.becomes}; it was {done.was}")

    def undo(self, at: Step) -> Effect:
        done = at.ledger.prioritize(self.allocation_id, int(at.before["priority"]), place=at.before, note=at.note)
        return Effect(done.entry, f"{self.allocation_id} has priority {done.becomes} again")


@dataclass(frozen=True)
class Front(Command):
    """Move an allocation that has not been granted before the first in line."""

    action = "front"
    allocation_id: str

    def do(self, at: Step) -> Effect:
        return self._move(at, None)

    def undo(self, at: Step) -> Effect:
        return self._move(at, at.before)

    def redo(self, at: Step) -> Effect:
        assert at.entry is not None
        return self._move(at, at.entry.after)

    def _move(self, at: Step, place: Mapping[str, Any] | None) -> Effect:
        done, was, becomes = at.ledger.front(self.allocation_id, place=place, note=at.note)
        if not becomes:
            told = f"is {done.becomes.replace('_', ' ')}; its place in line is another"
        elif was == becomes:
            told = f"is number {becomes} in line as before"
        else:
            told = f"is number {becomes} in line; it was number {was}"
        return Effect(done.entry, f"{self.allocation_id} {told}")


def _held(done: Operated, *, hold: bool) -> str:
    if hold:
        return "is on hold"
    return "stays on hold: the circuit breaker of its name is open" if done.becomes == "on_hold" else "goes on"


@dataclass(frozen=True)
class _Holding(Command):
    allocation_id: str

    def _set(self, at: Step, *, hold: bool, by: str = "operator") -> Effect:
        if hold:
            done = at.ledger.hold(self.allocation_id, by=by, publishes=at.publishes, note=at.note)
        else:
            done = at.ledger.unhold(self.allocation_id, publishes=at.publishes, note=at.note)
        return Effect(done.entry, f"{self.allocation_id} {_held(done, hold=hold)}", done.grants)


class Hold(_Holding):
    """Put what waits or is delayed on hold."""

    action = "hold"

    def do(self, at: Step) -> Effect:
        return self._set(at, hold=True)

    def undo(self, at: Step) -> Effect:
        return self._set(at, hold=False)


class Unhold(_Holding):
    """Let what is on hold go on."""

    action = "unhold"

    def do(self, at: Step) -> Effect:
        return self._set(at, hold=False)

    def undo(self, at: Step) -> Effect:
        return self._set(at, hold=True, by=str(at.before.get("by", "operator")))


@dataclass(frozen=True)
class Cancel(Command):
    """End what has not started. Undone, it is back in its place; its caller may have been told already.

    ``only_waiting``: refuse what has been granted, such as what is held by hand.
    """

    action = "cancel"
    allocation_id: str
    only_waiting: bool = False

    def as_args(self) -> dict[str, Any]:
        """The values it was made from, but for what is usual."""
        return {name: value for name, value in super().as_args().items() if value is not False}

    def do(self, at: Step) -> Effect:
        only = self.only_waiting
        reply = at.ledger.cancel(self.allocation_id, only_waiting=only, publishes=at.publishes, note=at.note)
        if not reply.done:
            told = {
                "gone": "has ended or never was",
                "running": "runs: celery control terminate SIGTERM ends it",
                "granted": "has been granted meanwhile, and was left alone",
            }
            raise ActionRefused(f"{self.allocation_id} {told.get(reply.state, reply.state)}")
        obituaries = () if reply.obituary is None else (reply.obituary,)
        return Effect(reply.entry, f"{self.allocation_id} was {reply.state} and is cancelled", reply.grants, obituaries)

    def undo(self, at: Step) -> Effect:
        return _restored(at, self.allocation_id)


@dataclass(frozen=True)
class Release(Command):
    """Give back an allocation made by hand. Undone, it holds the same place again, if that is free."""

    action = "release"
    allocation_id: str
    token: int | None = None
    outcome: str = "success"

    def __post_init__(self) -> None:
        if label("outcome", self.outcome) in ("requeue", "lost"):
            raise RequestError(f"an allocation by hand cannot be released as {self.outcome!r}: that is for tasks")

    def do(self, at: Step) -> Effect:
        return _ended(at, self.allocation_id, self.token, self.outcome)

    def undo(self, at: Step) -> Effect:
        return _restored(at, self.allocation_id)

    def redo(self, at: Step) -> Effect:
        return _ended(at, self.allocation_id, None, self.outcome)


@dataclass(frozen=True)
class Allocate(Command):
    """An allocation made by hand. ``allocating`` makes it, which knows of hosts and waiting; here it is taken back."""

    action = "allocate"
    allocation_id: str

    def do(self, at: Step) -> Effect:
        raise ActionRefused(f"{at.note.action} is done by allocate_resources, which writes the entry itself")

    def undo(self, at: Step) -> Effect:
        return _ended(at, self.allocation_id, None, "undone")

    def redo(self, at: Step) -> Effect:
        return _restored(at, self.allocation_id)


def _ended(at: Step, allocation_id: str, token: int | None, outcome: str) -> Effect:
    """Release what is held by hand, or take it out of line."""
    released = at.ledger.release(allocation_id, token, outcome, publishes=at.publishes, note=at.note)
    if released.done:
        return Effect(released.entry, f"{allocation_id} is released", released.grants)
    if not released.reason.startswith("not_held"):
        raise ActionRefused(f"{allocation_id} cannot be released: {released.reason}")
    found = at.ledger.get(allocation_id)
    if found.kind is not Kind.MANUAL:
        raise ActionRefused(f"{allocation_id} belongs to task {found.task_id}: its worker releases it")
    cancelled = at.ledger.cancel(allocation_id, outcome, publishes=at.publishes, note=at.note)
    if not cancelled.done:
        raise ActionRefused(f"{allocation_id} cannot be released: {cancelled.state}")
    return Effect(cancelled.entry, f"{allocation_id} was {cancelled.state} and is out of line", cancelled.grants)


def _restored(at: Step, allocation_id: str) -> Effect:
    done = at.ledger.restore(allocation_id, publishes=at.publishes, note=at.note)
    told = f"{allocation_id} is {done.becomes.replace('_', ' ')} again"
    return Effect(done.entry, told, done.grants, revived=(allocation_id,))
