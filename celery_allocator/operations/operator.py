"""An operator: takes actions on a ledger in somebody's name, and undoes and redoes them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from celery_allocator.errors import (
    ActionRefused,
    AllocationNotFound,
    AllocatorError,
    DuplicateAction,
    JournalMoved,
    LedgerError,
)
from celery_allocator.ledger import Entry, Ledger, wire
from celery_allocator.model import label
from celery_allocator.operations.actor import Actor
from celery_allocator.operations.commands import Command, Step
from celery_allocator.operations.effect import Effect
from celery_allocator.operations.outcome import Outcome
from celery_allocator.operations.plan import Plan, concern, describe, plan_redo, plan_undo
from celery_allocator.operations.registry import command

#: How often a plan is made anew because somebody acted meanwhile.
_TRIES = 5


class Operator:
    """Acts for ``actor``. ``settle`` is told of every effect at once: it publishes grants and writes results.

    Without ``settle`` grants are left to the workers' next tick, and so are results.
    """

    def __init__(self, ledger: Ledger, actor: Actor, settle: Callable[[Effect], None] | None = None) -> None:
        self.ledger = ledger
        self.actor = actor
        self._settle = settle

    def run(self, action: Command) -> Effect:
        """Take an action. Raises :class:`ActionRefused` and what the ledger raises; then nothing has changed."""
        note = self.actor.note(action.action, action.as_args())
        return self._told(action.do(Step(self.ledger, note, self._publishes)))

    def run_each(
        self, actions: Iterable[Command], *, batch: str | None = None, beyond_journal: bool = False
    ) -> Iterator[Outcome]:
        """Take actions that do not depend on each other; one that is refused is passed over. Taken as they are read.

        Each has its own entry in the journal; all share ``batch`` (a new label unless given), by which
        :meth:`again_each` undoes them together. An idempotency key of the actor is made one per action. Raises
        :class:`ActionRefused`, before any is taken, for more than the journal remembers, unless ``beyond_journal``:
        then not all can be undone.
        """
        todo, most = list(actions), self.ledger.options.journal_maxlen
        if len(todo) > most and not beyond_journal:
            raise ActionRefused(
                f"that would be {len(todo)} actions, and the journal remembers no more than {most} "
                "(allocator_journal_maxlen): not all of them could be undone"
            )
        alone = batch is None and len(todo) < 2
        return self._each(todo, "" if alone else label("batch", batch or f"batch_{uuid.uuid4().hex[:12]}"))

    def _each(self, todo: list[Command], batch: str) -> Iterator[Outcome]:
        for action in todo:
            about = str(next(iter(action.as_args().values()), ""))
            once = f"{self.actor.once}:{about}" if self.actor.once else ""
            note = replace(self.actor, once=once).note(action.action, action.as_args(), batch)
            try:
                done = Outcome(about, self._told(action.do(Step(self.ledger, note, self._publishes))))
            except (ActionRefused, AllocationNotFound) as error:
                done = Outcome(about, error=error)
            yield done

    def journal(self, limit: int = 50, before: int | None = None) -> tuple[Entry, ...]:
        """Entries, latest first."""
        return self.ledger.journal(limit, before)

    def plan(self, way: str, number: int | None = None, *, cascade: bool = False, together: bool = False) -> Plan:
        """What an undo or redo would do, without doing it. Raises :class:`ActionRefused`, :class:`LedgerError`.

        ``together``: of the entry and of those that it was taken together with.
        """
        page = self.ledger.journal_page(self.ledger.options.journal_maxlen)
        if page.damage:
            raise LedgerError(
                f"cannot {way}: {page.damage[0]}. What stands on what cannot be told before `celery-allocator verify "
                "--repair` has taken it out"
            )
        make = plan_undo if way == "undo" else plan_redo
        return make(page.entries, number, page.seen, cascade=cascade, together=together, dropped=page.dropped)

    def undo(
        self, number: int | None = None, *, cascade: bool = False, agreed: Iterable[int] | None = None
    ) -> list[Effect]:
        """Undo an entry (``None``: the latest in force), with ``cascade`` also what depends on it.

        ``agreed``: numbers of the entries that may be undone, as a plan showed them; ``None``: whatever it takes.
        Raises :class:`ActionRefused`. Where a cascade stops halfway, the error says what was undone before that.
        """
        return self._again("undo", number, cascade=cascade, agreed=agreed)

    def redo(
        self, number: int | None = None, *, cascade: bool = False, agreed: Iterable[int] | None = None
    ) -> list[Effect]:
        """Redo an entry (``None``: the one undone last), with ``cascade`` also what has to be redone before it."""
        return self._again("redo", number, cascade=cascade, agreed=agreed)

    def again_each(
        self,
        way: str,
        number: int | None = None,
        *,
        cascade: bool = False,
        agreed: Iterable[int] | None = None,
    ) -> Iterator[Outcome]:
        """Undo or redo (``way``) an entry and those it was taken together with, as they are read.

        What is refused is passed over, and so is what stands on it. ``cascade``, ``agreed``: as in :meth:`undo`. Raises
        :class:`ActionRefused` where there is no plan (any more), :class:`JournalMoved` if others always act first.
        """
        allowed = None if agreed is None else frozenset(agreed)
        refused: set[int] = set()
        tries = _TRIES
        while True:
            plan = self._planned(way, number, cascade=cascade, together=True, allowed=allowed)
            number = plan.entries[-1].number
            try:
                for outcome in self._follow_each(plan, refused):
                    tries = _TRIES
                    yield outcome
            except JournalMoved:
                tries -= 1
                if tries < 0:
                    raise
            else:
                return

    def _follow_each(self, plan: Plan, refused: set[int]) -> Iterator[Outcome]:
        seen, stay = plan.seen, [entry for entry in plan.entries if entry.number in refused]
        for entry in plan.entries:
            if entry in stay:
                continue
            below = next((other for other in stay if concern(other, entry)), None)
            try:
                if below is None:
                    outcome = Outcome(describe(entry), self._take_again(plan, entry, seen))
                    seen += 1
                else:
                    told = f"cannot {plan.way} {describe(entry)}: {describe(below)} could not be {plan.way}ne"
                    outcome = Outcome(describe(entry), error=ActionRefused(told))
            except JournalMoved:
                raise
            except (ActionRefused, AllocationNotFound) as error:
                outcome = Outcome(describe(entry), error=error)
            if not outcome.done:
                refused.add(entry.number)
                stay.append(entry)
            yield outcome

    def follow(self, plan: Plan) -> Iterator[Effect]:
        """Do what a plan says, step by step. Raises :class:`JournalMoved` if somebody has acted since it was made."""
        for step, entry in enumerate(plan.entries):
            yield self._take_again(plan, entry, plan.seen + step)

    def _take_again(self, plan: Plan, entry: Entry, seen: int) -> Effect:
        last, keeps_place = entry is plan.entries[-1], plan.keeps_place(entry)
        note = self.actor.note_again(plan.way, entry, seen, last=last, keeps_place=keeps_place)
        one = command(entry.action, entry.args)
        act = wire.reads(f"journal entry {entry.number}")(one.undo if plan.way == "undo" else one.redo)
        return self._told(act(Step(self.ledger, note, self._publishes, entry)))

    @property
    def _publishes(self) -> bool:
        return self._settle is not None

    def _again(self, way: str, number: int | None, *, cascade: bool, agreed: Iterable[int] | None) -> list[Effect]:
        allowed = None if agreed is None else frozenset(agreed)
        done: list[Effect] = []
        try:
            for last in range(_TRIES, -1, -1):
                plan = self._planned(way, number, cascade=cascade, allowed=allowed)
                number = plan.entries[-1].number  # also when it was "the latest": that one is meant from now on
                try:
                    done.extend(self.follow(plan))  # also where that raises halfway
                except JournalMoved:
                    if not last:
                        raise
                else:
                    break
        except AllocatorError as error:
            if not done:
                raise
            texts = "; ".join(effect.text for effect in done)
            raise ActionRefused(f"{error} Done before that: {texts}") from error
        return done

    def _planned(
        self, way: str, number: int | None, *, cascade: bool, allowed: frozenset[int] | None, together: bool = False
    ) -> Plan:
        try:
            plan = self.plan(way, number, cascade=cascade, together=together)
        except ActionRefused:
            # It may be this very call that has done it before.
            if self.actor.once and (entry := self.ledger.applied(self.actor.once)) is not None:
                raise DuplicateAction(self.actor.once, entry) from None
            raise
        if allowed is not None and (new := [entry for entry in plan.entries if entry.number not in allowed]):
            raise ActionRefused(
                f"cannot {way} {describe(plan.entries[-1])}: others have acted meanwhile, and it takes also "
                f"{', '.join(describe(entry) for entry in new)}. Look at the plan again"
            )
        return plan

    def _told(self, effect: Effect) -> Effect:
        if self._settle is not None:
            self._settle(effect)
        return effect
