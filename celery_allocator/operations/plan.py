"""Which actions have to be undone, in which order, so that one of them can be; and what forbids it.

Two actions concern each other if they touched the same object; a node is all of its devices, also those that came
later. What was taken earlier and what later is told by ``done_op``. An action is undone only when none of those that
concern it and were taken after it is in force; and redone only when those before it that concern it are in force again.
So what an undo puts back is what was there, and never the work of somebody who came later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from celery_allocator.errors import ActionRefused
from celery_allocator.ledger import Entry
from celery_allocator.ledger.journal import DONE, UNDONE
from celery_allocator.operations.registry import COMMANDS


@dataclass(frozen=True)
class Plan:
    """Entries to be undone or redone (``way``), in this order; the last one is one that was asked for.

    ``seen``: how many actions had been taken when the plan was made. ``asked``: numbers of those that were asked for.
    """

    way: str
    entries: tuple[Entry, ...]
    seen: int
    asked: frozenset[int]
    #: Numbers of those which take a new place when they are redone: others were taken while they were undone.
    moved: frozenset[int] = frozenset()

    def keeps_place(self, entry: Entry) -> bool:
        """Whether a redone entry stands among the others where it stood before."""
        return entry.number not in self.moved

    @property
    def others(self) -> tuple[Entry, ...]:
        """What has to be undone or redone first, and was not asked for."""
        return tuple(entry for entry in self.entries if entry.number not in self.asked)

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
    values = (entry.args.get(name) for name in names)
    return " ".join(str(value) for value in values if value is not None and not isinstance(value, bool))


def plan_undo(
    entries: Iterable[Entry],
    number: int | None,
    seen: int,
    *,
    cascade: bool = False,
    together: bool = False,
    dropped: int = 0,
) -> Plan:
    """What to do to undo entry ``number`` (``None``: the latest that is in force).

    ``together``: also those it was taken together with. ``dropped``: the place of the last one in force that the
    journal does not remember any more. Raises :class:`ActionRefused` if later actions depend on it and ``cascade`` is
    false, if one that is not remembered may, or if nothing can be undone.
    """
    known = _Known(entries)
    targets = _pick(known, number, DONE, "undo", together=together)
    # What depends on something that has to go, has to go first.
    needed = _closure(targets, known, DONE, lambda entry, one: entry.done_op > one.done_op)
    order = sorted(needed.values(), key=lambda entry: -entry.done_op)
    _refuse_before(dropped, order, "undo")
    plan = Plan("undo", tuple(order), seen, frozenset(target.number for target in targets))
    _refuse_unless(plan, cascade, "later actions depend on it")
    return plan


def plan_redo(
    entries: Iterable[Entry],
    number: int | None,
    seen: int,
    *,
    cascade: bool = False,
    together: bool = False,
    dropped: int = 0,
) -> Plan:
    """What to do to redo entry ``number`` (``None``: the one that was undone last).

    Raises :class:`ActionRefused` if others that were taken on the same objects after it are in force; if those before
    it have to be redone first and ``cascade`` is false; or if there is nothing to redo. ``together``, ``dropped``: as
    in :func:`plan_undo`.
    """
    known = _Known(entries)
    targets = _pick(known, number, UNDONE, "redo", together=together)
    # What was in force when a needed one was taken, and was undone after that, has to be in force again first.
    needed = _closure(targets, known, UNDONE, lambda entry, one: entry.done_op < one.done_op < (entry.undone_op or 0))
    for one in needed.values():
        since = [e for e in known.concerning(one) if e.state == DONE and e.done_op > one.done_op]
        if since:
            raise ActionRefused(
                f"cannot redo {describe(one)}: {describe(since[-1])} has changed the same since; undo that first"
            )
    order = sorted(needed.values(), key=lambda entry: entry.done_op)
    _refuse_before(dropped, order, "redo")
    moved: set[int] = set()
    for one in order:
        # What stands on one that takes a new place comes after that one again.
        if any(
            e.number in moved or (e.number not in needed and e.done_op > (one.undone_op or 0))
            for e in known.concerning(one)
        ):
            moved.add(one.number)
    plan = Plan("redo", tuple(order), seen, frozenset(target.number for target in targets), frozenset(moved))
    _refuse_unless(plan, cascade, "actions before it are undone, too")
    return plan


class _Known:
    """The journal's entries by number, and by what they touched."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = sorted(entries, key=lambda entry: entry.number)
        self._by_object: defaultdict[str, list[Entry]] = defaultdict(list)
        self._by_node: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            for name in set(entry.objects):
                self._by_object[name].append(entry)
            for kind in _KINDS:
                for node in _nodes(entry, kind):
                    self._by_node[kind, node].append(entry)

    def concerning(self, one: Entry) -> list[Entry]:
        """Those that touched the same as ``one``, by number; ``one`` is among them."""
        found = {entry.number: entry for name in one.objects for entry in self._by_object[name]}
        for mine, theirs in (_KINDS, _KINDS[::-1]):
            for node in _nodes(one, mine):
                found |= {entry.number: entry for entry in self._by_node[theirs, node]}
        return [found[number] for number in sorted(found)]


def _pick(known: _Known, number: int | None, state: str, way: str, *, together: bool) -> list[Entry]:
    some = [entry for entry in known.entries if entry.state == state]
    if number is None:
        if not some:
            raise ActionRefused(f"there is nothing to {way}")
        # The latest to be in force, or to be undone.
        chosen = max(some, key=lambda entry: entry.done_op if state == DONE else entry.undone_op or 0)
    else:
        named = [entry for entry in known.entries if entry.number == number]
        if not named:
            raise ActionRefused(f"cannot {way} entry {number}: it is not in the journal (any more)")
        (chosen,) = named
    batch = [entry for entry in some if together and chosen.batch and entry.batch == chosen.batch]
    if not batch and chosen.state != state:
        told = "is undone already" if chosen.state == UNDONE else "is in force"
        others = ", and so are those it was taken together with" if together and chosen.batch else ""
        raise ActionRefused(f"cannot {way} {describe(chosen)}: it {told}{others}")
    return batch or [chosen]


def _closure(
    targets: Iterable[Entry], known: _Known, state: str, needs: Callable[[Entry, Entry], bool]
) -> dict[int, Entry]:
    """``targets`` and, by number, whatever in ``state`` concerns one of them and is needed by ``needs(entry, one)``."""
    needed = {target.number: target for target in targets}
    left = list(needed.values())
    while left:
        one = left.pop()
        for entry in known.concerning(one):
            if entry.state == state and entry.number not in needed and needs(entry, one):
                needed[entry.number] = entry
                left.append(entry)
    return needed


def concern(one: Entry, other: Entry) -> bool:
    """Whether they touched the same."""
    return (
        not set(one.objects).isdisjoint(other.objects)
        or not _nodes(one, "node:").isdisjoint(_nodes(other, "device:"))
        or not _nodes(one, "device:").isdisjoint(_nodes(other, "node:"))
    )


#: Of a node as such, and of a device of it.
_KINDS = ("node:", "device:")


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
