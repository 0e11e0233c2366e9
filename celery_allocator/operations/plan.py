"""Which actions have to be undone, in which order, so that one of them can be; and what forbids it.

Two actions concern each other if they touched the same object; a node is all of its devices, also those that came
later. What was taken earlier and what later is told by ``done_op``. An action is undone only when none of those that
concern it and were taken after it is in force; and redone only when those before it that concern it are in force again.
So what an undo puts back is what was there, and never the work of somebody who came later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from celery_allocator.errors import ActionRefused
from celery_allocator.ledger import Entry
from celery_allocator.ledger.journal import DONE, UNDONE
from celery_allocator.operations.registry import COMMANDS


@dataclass(frozen=True)
class Plan:
    """Entries to be undone or redone (``way``), in this order; the last one is the one that was asked for.

    ``seen``: how many actions had been taken when the plan was made.
    """

    way: str
    entries: tuple[Entry, ...]
    seen: int
    #: Numbers of those which take a new place when they are redone: others were taken while they were undone.
    moved: frozenset[int] = frozenset()

    def keeps_place(self, entry: Entry) -> bool:
        """Whether a redone entry stands among the others where it stood before."""
        return entry.number not in self.moved

    @property
    def others(self) -> tuple[Entry, ...]:
        """What has to be undone or redone first."""
        return self.entries[:-1]

    def lines(self) -> list[str]:
        """The plan for people, a line for each step."""
        return [f"{self.way} {describe(entry)}" for entry in self.entries]


def describe(entry: Entry) -> str:
    """``12 cordon n1 by ada@host``."""
    return " ".join(filter(None, (str(entry.number), entry.action, subject(entry), "by", entry.actor)))


def subject(entry: Entry) -> str:
    """What it was done to: the values that its command was made from, in the command's order."""
    kind = COMMANDS.get(entry.action)
    names = [spec.name for spec in fields(kind)] if kind is not None else sorted(entry.args)
    return " ".join(str(value) for name in names if (value := entry.args.get(name)) is not None)


def plan_undo(
    entries: Iterable[Entry], number: int | None, seen: int, *, cascade: bool = False, dropped: int = 0
) -> Plan:
    """What to do to undo entry ``number`` (``None``: the latest that is in force).

    ``dropped``: the place of the last one in force that the journal does not remember any more. Raises
    :class:`ActionRefused` if later actions depend on it and ``cascade`` is false, if one that is not remembered may, or
    if nothing can be undone.
    """
    known = sorted(entries, key=lambda entry: entry.number)
    target = _pick(known, number, DONE, "undo")
    # What depends on something that has to go, has to go first.
    needed = _closure(target, known, DONE, lambda entry, one: entry.done_op > one.done_op)
    order = sorted(needed.values(), key=lambda entry: -entry.done_op)
    _refuse_before(dropped, order, "undo")
    plan = Plan("undo", tuple(order), seen)
    _refuse_unless(plan, cascade, "later actions depend on it")
    return plan


def plan_redo(
    entries: Iterable[Entry], number: int | None, seen: int, *, cascade: bool = False, dropped: int = 0
) -> Plan:
    """What to do to redo entry ``number`` (``None``: the one that was undone last).

    Raises :class:`ActionRefused` if others that were taken on the same objects after it are in force; if those before
    it have to be redone first and ``cascade`` is false; or if there is nothing to redo. ``dropped``: as in
    :func:`plan_undo`.
    """
    known = sorted(entries, key=lambda entry: entry.number)
    target = _pick(known, number, UNDONE, "redo")
    # What was in force when a needed one was taken, and was undone after that, has to be in force again first.
    needed = _closure(target, known, UNDONE, lambda entry, one: entry.done_op < one.done_op < (entry.undone_op or 0))
    for one in needed.values():
        in_force = [e for e in known if e.state == DONE and _concern(e, one)]
        since = [e for e in in_force if e.done_op > one.done_op]
        if since:
            raise ActionRefused(
                f"cannot redo {describe(one)}: {describe(since[-1])} has changed the same since; undo that first"
            )
    order = sorted(needed.values(), key=lambda entry: entry.done_op)
    _refuse_before(dropped, order, "redo")
    moved: dict[int, Entry] = {}
    for one in order:
        since = [e for e in known if _concern(e, one) and e.number not in needed and e.done_op > (one.undone_op or 0)]
        # What stands on one that takes a new place comes after that one again.
        if since or any(_concern(other, one) for other in moved.values()):
            moved[one.number] = one
    plan = Plan("redo", tuple(order), seen, frozenset(moved))
    _refuse_unless(plan, cascade, "actions before it are undone, too")
    return plan


def _pick(known: list[Entry], number: int | None, state: str, way: str) -> Entry:
    if number is None:
        some = [entry for entry in known if entry.state == state]
        if not some:
            raise ActionRefused(f"there is nothing to {way}")
        # The latest to be in force, or to be undone.
        return max(some, key=lambda entry: entry.done_op if state == DONE else entry.undone_op or 0)
    for entry in known:
        if entry.number == number:
            if entry.state != state:
                told = "is undone already" if entry.state == UNDONE else "is in force"
                raise ActionRefused(f"cannot {way} {describe(entry)}: it {told}")
            return entry
    raise ActionRefused(f"cannot {way} entry {number}: it is not in the journal (any more)")


def _closure(target: Entry, known: list[Entry], state: str, needs: Callable[[Entry, Entry], bool]) -> dict[int, Entry]:
    """``target`` and, by number, whatever in ``state`` concerns one of them and is needed by ``needs(entry, one)``."""
    needed = {target.number: target}
    grew = True
    while grew:
        grew = False
        for entry in known:
            if entry.state != state or entry.number in needed:
                continue
            if any(_concern(entry, one) and needs(entry, one) for one in needed.values()):
                needed[entry.number] = entry
                grew = True
    return needed


def _concern(one: Entry, other: Entry) -> bool:
    return (
        not set(one.objects).isdisjoint(other.objects)
        or not _nodes(one, "node:").isdisjoint(_nodes(other, "device:"))
        or not _nodes(one, "device:").isdisjoint(_nodes(other, "node:"))
    )


def _nodes(entry: Entry, kind: str) -> set[str]:
    """Names of nodes that it touched as such, or devices of which it touched."""
    return {name[len(kind) :].partition("/")[0] for name in entry.objects if name.startswith(kind)}


def _refuse_before(dropped: int, order: list[Entry], way: str) -> None:
    old = [entry for entry in order if entry.done_op < dropped]
    if old:
        raise ActionRefused(
            f"cannot {way} {describe(old[-1])}: an action that was taken after it and is in force is not in the "
            "journal any more (setting allocator_journal_maxlen)"
        )


def _refuse_unless(plan: Plan, cascade: bool, why: str) -> None:
    if plan.others and not cascade:
        first = ", ".join(describe(entry) for entry in plan.others)
        raise ActionRefused(
            f"cannot {plan.way} {describe(plan.entries[-1])}: {why}. First {plan.way}: {first} "
            "(or all of them with --cascade)"
        )
