"""Remote control: what ``celery inspect`` and ``celery control`` can ask of workers, and other monitors by broadcast.

Celery calls these in the worker's event loop. Looking asks nobody; what changes something is an operator's action like
any other, journalled with who asked as far as a broadcast tells, and is carried out by the desk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from typing import Any

from celery import Celery
from celery.worker.control import control_command, inspect_command, nok, ok

from celery_allocator.errors import (
    AllocatorError,
    DuplicateAction,
    LedgerUnavailable,
    SettingsError,
)
from celery_allocator.ledger import Ledger
from celery_allocator.operations import (
    Actor,
    Command,
    Cordon,
    Drain,
    Effect,
    Front,
    Hold,
    Operator,
    Pause,
    Priority,
    Resume,
    Uncordon,
    Unhold,
)
from celery_allocator.plugin.desk import Desk
from celery_allocator.plugin.session import Keeper, session

logger = logging.getLogger(__name__)

SOURCE = "control"
#: Who acted, where the caller's program did not say: one without ``install(app)``.
UNKNOWN = "remote control"
#: What :class:`~celery_allocator.plugin.control.AllocatorControl` adds to each of these commands.
CALLER, CALL = "actor", "call"
_DESK = "_allocator_desk"
#: Arguments by their place on the command line, as Celery takes them.
_WHICH, _WHY = ("which", str), [("reason", str)]
_NO_DEVICE = "this worker serves no device: it was started without --gpu"


@inspect_command()
def allocator(state: Any, **_: Any) -> dict[str, Any]:
    """What a worker says of its device, what it holds, its lease, duties and measured use."""
    current = session(state.app)
    try:
        settings = current.settings
    except SettingsError as error:
        return nok(str(error))  # type: ignore[no-any-return]
    keeper = current.keeper
    duties = {duty.name: duty.has_it for duty in current.duties}
    return {
        "version": import_module("celery_allocator").__version__,  # the package imports this one: not at the top
        "pool": settings.pool,
        "serves": keeper is not None,
        **({} if keeper is None else keeper.describe()),
        "duties": sorted(name for name, has_it in duties.items() if has_it),
        "stands_by_for": sorted(name for name, has_it in duties.items() if not has_it),
    }


@control_command(args=_WHY, signature="[reason]")
def allocator_cordon(state: Any, **told: Any) -> dict[str, Any]:
    """Grant nothing new on this worker's device; what it holds goes on."""
    return _on_device(state, Cordon, told)


@control_command(args=_WHY, signature="[reason]")
def allocator_uncordon(state: Any, **told: Any) -> dict[str, Any]:
    """Grant on this worker's device again."""
    return _on_device(state, Uncordon, told)


@control_command(args=_WHY, signature="[reason]")
def allocator_drain(state: Any, **told: Any) -> dict[str, Any]:
    """Grant nothing new on this worker's device, and take back what has not started."""
    return _on_device(state, Drain, told)


@control_command(args=_WHY, signature="[reason]")
def allocator_pause(state: Any, **told: Any) -> dict[str, Any]:
    """Stop granting in the whole pool, whoever is asked."""
    return _on_pool(state, lambda _: [Pause()], told)


@control_command(args=_WHY, signature="[reason]")
def allocator_resume(state: Any, **told: Any) -> dict[str, Any]:
    """Grant in the pool again."""
    return _on_pool(state, lambda _: [Resume()], told)


@control_command(args=[_WHICH, *_WHY], signature="<task or allocation id> [reason]")
def allocator_hold(state: Any, which: str = "", **told: Any) -> dict[str, Any]:
    """Put what waits or is delayed on hold."""
    return _on_pool(state, lambda ledger: [Hold(found.allocation_id) for found in ledger.named(which)], told)


@control_command(args=[_WHICH, *_WHY], signature="<task or allocation id> [reason]")
def allocator_unhold(state: Any, which: str = "", **told: Any) -> dict[str, Any]:
    """Let what is on hold go on."""
    return _on_pool(state, lambda ledger: [Unhold(found.allocation_id) for found in ledger.named(which)], told)


@control_command(args=[_WHICH, ("priority", int), *_WHY], signature="<task or allocation id> <priority> [reason]")
def allocator_priority(state: Any, which: str = "", priority: int = 0, **told: Any) -> dict[str, Any]:
    """Give what has not been granted another priority."""
    return _on_pool(
        state, lambda ledger: [Priority(found.allocation_id, priority) for found in ledger.named(which)], told
    )


@control_command(args=[_WHICH, *_WHY], signature="<task or allocation id> [reason]")
def allocator_front(state: Any, which: str = "", **told: Any) -> dict[str, Any]:
    """Move what has not been granted before the first in line."""
    return _on_pool(state, lambda ledger: [Front(found.allocation_id) for found in ledger.named(which)], told)


#: Commands that change something.
CONTROLS = (
    *("allocator_cordon", "allocator_uncordon", "allocator_drain", "allocator_pause", "allocator_resume"),
    *("allocator_hold", "allocator_unhold", "allocator_priority", "allocator_front"),
)


def _on_device(state: Any, command: Callable[[str], Command], told: dict[str, Any]) -> dict[str, Any]:
    keeper = session(state.app).keeper
    if keeper is None:
        return nok(_NO_DEVICE)  # type: ignore[no-any-return]
    info = keeper.info()
    target = f"{info['node']}/{info['device']}"
    return _act(state.app, lambda _: [command(target)], told)


def _on_pool(state: Any, commands: Callable[[Ledger], Iterable[Command]], told: dict[str, Any]) -> dict[str, Any]:
    """Every worker that is asked tries; by the call's idempotency key the action is taken once."""
    return _act(state.app, commands, told)


def _act(app: Celery, commands: Callable[[Ledger], Iterable[Command]], told: dict[str, Any]) -> dict[str, Any]:
    keeper = session(app).keeper
    done: list[str] = []
    try:
        if keeper is not None and keeper.outage:
            raise LedgerUnavailable("the ledger is away; nothing was done")
        actor = _actor(told)

        def act(ledger: Ledger) -> list[str]:
            for text in _carried_out(ledger, actor, keeper, commands(ledger)):
                done.append(text)  # noqa: PERF402  # one by one: what comes before a failure is told
            return done

        _desk(app).ask(act)
    except AllocatorError as error:
        logger.warning("remote control: %s", error)
        before = f". Done before that: {'; '.join(done)}" if done else ""
        return nok(f"{error}{before}")  # type: ignore[no-any-return]
    return ok("; ".join(done))  # type: ignore[no-any-return]


def _carried_out(
    ledger: Ledger, actor: Callable[[Command], Actor], keeper: Keeper | None, commands: Iterable[Command]
) -> Iterable[str]:
    settle: Callable[[Effect], None] | None = None if keeper is None else keeper.settle
    for command in commands:
        who = actor(command)
        try:
            effect = Operator(ledger, who, settle).run(command)
        except DuplicateAction as duplicate:
            yield f"done by another worker: entry {duplicate.entry} of the journal"
            continue
        logger.warning("remote control: %s (by %s, entry %s of the journal)", effect.text, who.name, effect.entry)
        held = f", {len(effect.held)} held there" if effect.held else ""
        yield f"{effect.text}{held} (entry {effect.entry} of the journal)"


def _actor(told: dict[str, Any]) -> Callable[[Command], Actor]:
    """Who does each of a call's actions. Raises :class:`LabelError` for a name or a reason that cannot be recorded."""
    plain = Actor(str(told.get(CALLER) or UNKNOWN), SOURCE, str(told.get("reason") or ""))
    call = told.get(CALL)

    def actor(command: Command) -> Actor:
        """One idempotency key per call and subject: of all workers that were asked, one takes the action."""
        subject = ":".join(str(value) for value in command.as_args().values())
        return replace(plain, once=f"{SOURCE}:{call}:{subject}") if call else plain

    return actor


def _desk(app: Celery) -> Desk:
    desk = vars(app).get(_DESK)
    if desk is None:
        current = session(app)
        desk = vars(app)[_DESK] = Desk(lambda: current.connect(current.settings))
    assert isinstance(desk, Desk)
    return desk
