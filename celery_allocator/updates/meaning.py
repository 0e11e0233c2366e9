"""What an update means: which operator commands bring about what it says. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from celery_allocator.errors import ActionRefused, AllocationNotFound, RequestError
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, Kind, State, label
from celery_allocator.operations import (
    NOT_GRANTED,
    Cancel,
    Command,
    Cordon,
    Drain,
    Hold,
    Pause,
    Priority,
    Release,
    Resume,
    Selection,
    Uncordon,
    Unhold,
    select,
)
from celery_allocator.updates.form import Update

_PLACES: dict[str, type[Command]] = {"ready": Uncordon, "cordoned": Cordon, "draining": Drain}


@dataclass(frozen=True)
class Meaning:
    """Commands in their order. ``unchanged``: objects that are so already.

    ``each``: the commands do not depend on each other; one that is refused by now is passed over.
    """

    commands: tuple[Command, ...]
    unchanged: int = 0
    each: bool = False


def meaning(update: Update, ledger: Ledger) -> Meaning:
    """What to do for an update, after a look at the objects it names.

    Raises :class:`RequestError` for what no such object can be told, :class:`AllocationNotFound`,
    :class:`ActionRefused` and :class:`RequirementsError`; then nothing is to be done.
    """
    return _BY_OBJECT[update.object](update, ledger)


def _place(update: Update, _: Ledger) -> Meaning:
    _no_delete(update, "it goes by itself when its workers do")
    if (update.object == "device") != ("/" in update.id):
        raise RequestError(f"{update.object} id={update.id!r}: a device is named node/device, a node without a slash")
    state = _fields(update, "state")["state"]
    if not isinstance(state, str) or state not in _PLACES:
        raise RequestError(f"state={state!r}: a {update.object} can be made {', '.join(_PLACES)}")
    make: Callable[[str], Command] = _PLACES[state]
    return Meaning((make(update.id),))


def _allocation(update: Update, ledger: Ledger) -> Meaning:
    return _together(update, (ledger.get(update.id),))


def _task(update: Update, ledger: Ledger) -> Meaning:
    found = ledger.find(update.id)
    if not found:
        raise AllocationNotFound(f"no live allocation of task {update.id!r}: it has ended or never was")
    return _together(update, found)


def _tenant(update: Update, ledger: Ledger) -> Meaning:
    _no_delete(update, "cancel its tasks one by one")
    wanted = _fields(update, "state", "priority")
    most = ledger.options.journal_maxlen
    commands: list[Command] = []
    unchanged = 0
    for allocation in _of_tenant(ledger, update.id):
        some = _commands(wanted, allocation)
        if allocation.on_hold_by not in (None, "operator"):  # a circuit breaker lets it go on
            some = [command for command in some if not isinstance(command, Unhold)]
        commands += some
        unchanged += not some
        if len(commands) > most:
            raise ActionRefused(
                f"that would be more than {most} actions, and the journal remembers no more "
                "(allocator_journal_maxlen): they could not be undone. Update the tasks one by one"
            )
    return Meaning(tuple(commands), unchanged, each=True)


def _setting(update: Update, _: Ledger) -> Meaning:
    if update.id != "granting":
        raise RequestError(
            f"setting {update.id!r} cannot be changed from here: settings are read when a process starts. Only "
            '"granting" can, by {"paused": true} or false'
        )
    _no_delete(update, 'set {"paused": false}')
    paused = _fields(update, "paused")["paused"]
    if not isinstance(paused, bool):
        raise RequestError(f"paused={paused!r}: it must be true or false")
    return Meaning((Pause() if paused else Resume(),))


_BY_OBJECT: dict[str, Callable[[Update, Ledger], Meaning]] = {
    "node": _place,
    "device": _place,
    "allocation": _allocation,
    "task": _task,
    "tenant": _tenant,
    "setting": _setting,
}


def _together(update: Update, allocations: tuple[Allocation, ...]) -> Meaning:
    """The same for each of these, and for none if one of them cannot."""
    if update.op == "delete":
        if update.fields:
            raise RequestError(f"delete takes no fields, not {', '.join(sorted(update.fields))}")
        return Meaning(tuple(_ending(allocation) for allocation in allocations))
    wanted = _fields(update, "state", "priority")
    commands = [_commands(wanted, allocation, strict=True) for allocation in allocations]
    unchanged = sum(not some for some in commands)
    return Meaning(tuple(command for some in commands for command in some), unchanged)


def _ending(allocation: Allocation) -> Command:
    if allocation.state in (State.GRANTED, State.RUNNING) and allocation.kind is Kind.MANUAL:
        return Release(allocation.allocation_id, allocation.token)
    if allocation.state is State.RUNNING:
        raise ActionRefused(
            f"{allocation.allocation_id} runs: celery control terminate SIGTERM {allocation.task_id} ends it"
        )
    return Cancel(allocation.allocation_id)


def _commands(wanted: dict[str, Any], allocation: Allocation, *, strict: bool = False) -> list[Command]:
    """What has to be done to have ``allocation`` as ``wanted``: its priority first, then whether it may be granted.

    ``strict``: raises :class:`ActionRefused` where that cannot be done any more.
    """
    commands: list[Command] = []
    one = allocation.allocation_id
    if strict and allocation.state not in NOT_GRANTED:
        raise ActionRefused(f"{one} is {allocation.state.value}: only what has not been granted can be changed")
    if "priority" in wanted:
        command = Priority(one, wanted["priority"])
        if allocation.priority != wanted["priority"]:
            commands.append(command)
    state = wanted.get("state")
    if "state" in wanted and state not in ("on_hold", "waiting"):
        raise RequestError(f"state={state!r}: what has not been granted can be put on_hold, or be let go on (waiting)")
    if state == "on_hold" and allocation.state is not State.ON_HOLD:
        commands.append(Hold(one))
    if state == "waiting" and allocation.state is State.ON_HOLD:
        commands.append(Unhold(one))
    return commands


def _of_tenant(ledger: Ledger, tenant: str) -> Iterator[Allocation]:
    """All of a tenant's that has not been granted."""
    return select(ledger, Selection(tenant=label("tenant", tenant)))


def _fields(update: Update, *names: str) -> dict[str, Any]:
    """The fields of an update, which has one at least of ``names`` and no other."""
    if unknown := sorted(set(update.fields) - set(names)):
        named = ", ".join(ascii(name)[:80] for name in unknown[:5])
        raise RequestError(f"a {update.object} can be told {' and '.join(names)}, not {named}")
    if not update.fields:
        raise RequestError(f"fields is empty: for a {update.object} it holds {' or '.join(names)}")
    return dict(update.fields)


def _no_delete(update: Update, instead: str) -> None:
    if update.op == "delete":
        raise RequestError(f"a {update.object} cannot be deleted: {instead}")
