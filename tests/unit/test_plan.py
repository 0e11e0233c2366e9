"""Plans of undo and redo: pure functions over the journal's entries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_allocator.errors import ActionRefused
from celery_allocator.ledger import Entry
from celery_allocator.operations import Plan, plan_redo, plan_undo


@dataclass
class Journal:
    """What the ledger would write: entries, and the number of all actions so far."""

    entries: dict[int, Entry] = field(default_factory=dict)
    ops: int = 0

    def do(self, *objects: str) -> int:
        self.ops += 1
        number = len(self.entries) + 1
        self.entries[number] = Entry(
            number, "act", {"on": " ".join(objects)}, objects, "ada", "", "test", 0.0, {}, {}, "done", self.ops
        )
        return number

    def follow(self, plan: Plan) -> list[int]:
        assert plan.seen == self.ops
        for entry in plan.entries:
            self.ops += 1
            if plan.way == "undo":
                assert self.entries[entry.number].state == "done"
                self.entries[entry.number] = replace(entry, state="undone", undone_op=self.ops)
            else:
                assert self.entries[entry.number].state == "undone"
                place = entry.done_op if plan.keeps_place(entry) else self.ops
                self.entries[entry.number] = replace(entry, state="done", undone_op=None, done_op=place)
        return [entry.number for entry in plan.entries]

    def plan(self, way: str, number: int | None = None, *, cascade: bool = False, dropped: int = 0) -> Plan:
        make = plan_undo if way == "undo" else plan_redo
        return make(self.entries.values(), number, self.ops, cascade=cascade, dropped=dropped)

    def undo(self, number: int | None = None, *, cascade: bool = False) -> list[int]:
        return self.follow(self.plan("undo", number, cascade=cascade))

    def redo(self, number: int | None = None, *, cascade: bool = False) -> list[int]:
        return self.follow(self.plan("redo", number, cascade=cascade))

    @property
    def in_force(self) -> set[int]:
        return {number for number, entry in self.entries.items() if entry.state == "done"}


@pytest.fixture
def journal() -> Journal:
    return Journal()


def test_an_empty_journal_has_nothing_to_undo_or_redo(journal: Journal) -> None:
    with pytest.raises(ActionRefused, match="nothing to undo"):
        journal.plan("undo")
    journal.do("x")
    with pytest.raises(ActionRefused, match="nothing to redo"):
        journal.plan("redo")
    with pytest.raises(ActionRefused, match="cannot undo entry 9: it is not in the journal"):
        journal.plan("undo", 9)
    with pytest.raises(ActionRefused, match="cannot redo 1 act x by ada: it is in force"):
        journal.plan("redo", 1)
    journal.undo()
    with pytest.raises(ActionRefused, match="cannot undo 1 act x by ada: it is undone already"):
        journal.plan("undo", 1)


def test_a_chain_goes_from_its_end_and_comes_back_from_its_beginning(journal: Journal) -> None:
    for _ in range(4):
        journal.do("x")
    with pytest.raises(ActionRefused, match=r"First undo: 4 act x by ada, 3 act x by ada \(or all of them"):
        journal.plan("undo", 2)
    assert journal.undo(2, cascade=True) == [4, 3, 2]
    with pytest.raises(ActionRefused, match="First redo: 2 act x by ada, 3 act x by ada"):
        journal.plan("redo", 4)
    assert journal.redo(4, cascade=True) == [2, 3, 4]
    assert [journal.undo() for _ in range(4)] == [[4], [3], [2], [1]]
    assert [journal.redo() for _ in range(4)] == [[1], [2], [3], [4]]


def test_what_does_not_concern_it_is_left_alone(journal: Journal) -> None:
    journal.do("x")
    journal.do("y")
    assert journal.undo(1) == [1]
    assert journal.undo() == [2]
    assert journal.redo() == [2]
    assert journal.in_force == {2}


def test_a_diamond_is_undone_once_each(journal: Journal) -> None:
    journal.do("x", "y")
    journal.do("x")
    journal.do("y")
    journal.do("x", "y")
    assert journal.undo(1, cascade=True) == [4, 3, 2, 1]
    assert journal.redo(2, cascade=True) == [1, 2]
    assert journal.redo(4, cascade=True) == [3, 4]
    assert journal.undo(2, cascade=True) == [4, 2]


def test_dependents_of_dependents_go_first_though_they_do_not_concern_the_one_asked_for(journal: Journal) -> None:
    journal.do("x")
    journal.do("x", "y")
    journal.do("y", "z")
    journal.do("z")
    assert journal.undo(1, cascade=True) == [4, 3, 2, 1]


def test_a_node_is_all_of_its_devices(journal: Journal) -> None:
    journal.do("node:n1", "device:n1/gpu_0")
    journal.do("device:n1/gpu_1")  # came later
    journal.do("device:n2/gpu_1")
    journal.do("device:n1/gpu_0")
    assert journal.undo(1, cascade=True) == [4, 2, 1]
    journal.do("node:n10", "device:n10/gpu_0")
    assert journal.redo(2, cascade=True) == [1, 2]
    assert journal.undo(2) == [2]


def test_redo_after_others_have_acted_is_refused_while_those_are_in_force(journal: Journal) -> None:
    journal.do("x")
    journal.undo(1)
    journal.do("x")
    with pytest.raises(ActionRefused, match="cannot redo 1 act x by ada: 2 act x by ada has changed the same since"):
        journal.plan("redo", 1)
    journal.undo(2)
    plan = journal.plan("redo", 1)
    assert not plan.keeps_place(plan.entries[0])
    journal.follow(plan)
    with pytest.raises(ActionRefused, match="has changed the same since"):
        journal.plan("redo", 2)
    assert journal.undo() == [1]


def test_what_stands_on_one_that_takes_a_new_place_takes_one_behind_it(journal: Journal) -> None:
    """Else undoing the first would leave the second in force, which was taken on top of it."""
    journal.do("x", "y")
    journal.do("y")
    journal.undo(2)
    journal.undo(1)
    journal.do("x")
    journal.undo(3)
    plan = journal.plan("redo", 2, cascade=True)
    assert [plan.keeps_place(entry) for entry in plan.entries] == [False, False]
    assert journal.follow(plan) == [1, 2]
    with pytest.raises(ActionRefused, match="First undo: 2 act y"):
        journal.plan("undo", 1)


def test_a_dependent_is_known_though_its_basis_fell_out_of_the_journal(journal: Journal) -> None:
    for _ in range(3):
        journal.do("x")
    del journal.entries[1]
    with pytest.raises(ActionRefused, match="cannot undo entry 1: it is not in the journal"):
        journal.plan("undo", 1)
    assert journal.undo(2, cascade=True) == [3, 2]
    assert journal.redo(3, cascade=True) == [2, 3]


def test_nothing_is_undone_under_one_in_force_that_fell_out(journal: Journal) -> None:
    journal.do("x")
    journal.undo(1)
    journal.do("x")
    journal.undo(2)
    journal.redo(1)
    journal.do("x")
    dropped = journal.entries[1].done_op
    assert journal.entries[2].done_op < dropped < journal.entries[3].done_op
    del journal.entries[1]
    for way, number in (("redo", 2),):
        with pytest.raises(ActionRefused, match=r"2 act x|has changed"):
            journal.plan(way, number, dropped=dropped)
    assert [entry.number for entry in journal.plan("undo", dropped=dropped).entries] == [3]
    journal.follow(journal.plan("undo", dropped=dropped))
    with pytest.raises(ActionRefused, match="not in the journal any more"):
        journal.plan("redo", 2, dropped=dropped)


# --- any history, against brute force


@dataclass
class History:
    """What is in force, in the order in which it was last put into force, and what each stood on then.

    An entry stands on those in force that concern it when it is done or redone. It is right that: what an entry in
    force stands on is in force (an undo puts back what was there before it, so with that gone its own effect would be,
    too); and what is redone in its old place stands on what it stood on before.
    """

    journal: Journal
    order: list[int] = field(default_factory=list)
    basis: dict[int, set[int]] = field(default_factory=dict)
    former: dict[int, set[int]] = field(default_factory=dict)

    def concern(self, one: int, other: int) -> bool:
        def parts(number: int) -> Iterator[str]:
            for name in self.journal.entries[number].objects:
                node = name.partition(":")[2]
                yield from [f"{node}/{n}" for n in range(3)] if name.startswith("node:") else [name.partition(":")[2]]

        return not set(parts(one)).isdisjoint(parts(other))

    def put(self, number: int) -> None:
        self.basis[number] = {other for other in self.order if self.concern(number, other)}
        self.order.append(number)

    def take(self, number: int) -> None:
        on_top = self.order[self.order.index(number) + 1 :]
        assert not [other for other in on_top if self.concern(number, other)], "the last one that touched it goes first"
        self.order.remove(number)
        self.former[number] = self.basis.pop(number)

    def check(self) -> None:
        assert set(self.order) == self.journal.in_force
        for number, basis in self.basis.items():
            assert basis <= set(self.order), f"{number} is in force without what it stood on"
        for at, number in enumerate(self.order):
            for other in self.order[at + 1 :]:
                if self.concern(number, other):
                    places = [self.journal.entries[n].done_op for n in (number, other)]
                    assert places == sorted(places), "places tell the order in which they were put into force"


#: Few objects, so that much concerns each other.
NAMES = ("node:n", "device:n/0", "device:n/1", "allocation:a")
_touched = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("do"), _touched),
        st.tuples(st.sampled_from(["undo", "redo"]), st.integers(0, 5) | st.none()),
        st.tuples(st.sampled_from(["undo", "redo"]), st.integers(0, 5) | st.none()),
    ),
    min_size=6,
    max_size=20,
)


def step(history: History, way: str, number: int | None) -> bool:
    """Follow one plan, checked. False if it is refused."""
    journal = history.journal
    try:
        plan = journal.plan(way, number, cascade=True)
    except ActionRefused:
        return False
    assert number in (None, plan.entries[-1].number)
    for entry in plan.entries:
        if way == "undo":
            history.take(entry.number)
        else:
            history.put(entry.number)
            if plan.keeps_place(entry):
                assert history.basis[entry.number] == history.former[entry.number], "as it stood before"
    journal.follow(plan)
    if way == "undo":
        target = plan.entries[-1].number
        assert all(_stands_on(history, entry.number, target) for entry in plan.others), "nothing is undone for nothing"
    history.check()
    return True


@settings(max_examples=500, deadline=None)
@given(steps=_steps)
def test_following_the_plans_never_leaves_one_in_force_whose_basis_was_undone(steps: list[tuple[str, object]]) -> None:
    journal = Journal()
    history = History(journal)
    for way, what in steps:
        if way == "do":
            assert isinstance(what, list)
            history.put(journal.do(*what))
            history.check()
        else:
            step(
                history, way, None if what is None or not journal.entries else int(str(what)) % len(journal.entries) + 1
            )
    while journal.in_force:
        assert step(history, "undo", None)


def test_nor_does_any_history_of_three_actions_however_often_they_are_undone_and_redone() -> None:
    """All states that can be reached at all, each looked at once."""
    choices = [("a:x",), ("a:y",), ("a:x", "a:y")]
    seen: set[object] = set()
    ahead = [History(Journal())]
    while ahead:
        now = ahead.pop()
        count = len(now.journal.entries)
        moves: list[tuple[str, object]] = [("do", objects) for objects in choices if count < 3]
        moves += [(way, number) for way in ("undo", "redo") for number in range(1, count + 1)]
        for way, what in moves:
            after = copy.deepcopy(now)
            if way == "do":
                after.put(after.journal.do(*what))  # type: ignore[misc]
                after.check()
            elif not step(after, way, what):  # type: ignore[arg-type]
                continue
            if (state := _state(after)) not in seen:
                seen.add(state)
                ahead.append(after)
    assert len(seen) > 1000


def _state(history: History) -> object:
    """What tells two histories apart: of the places only their order."""
    entries = history.journal.entries.values()
    places = sorted({op for e in entries for op in (e.done_op, e.undone_op or 0)})
    return (
        tuple((e.objects, e.state, places.index(e.done_op), places.index(e.undone_op or 0)) for e in entries),
        tuple(history.order),
        repr((sorted(history.basis.items()), sorted(history.former.items()))),
    )


def _stands_on(history: History, number: int, target: int) -> bool:
    """Whether what was just undone stood on ``target``, directly or not."""
    basis = history.former[number]
    return target in basis or any(_stands_on(history, other, target) for other in basis if other in history.former)


@settings(max_examples=300, deadline=None)
@given(objects=st.lists(_touched, max_size=12))
def test_everything_is_undone_and_redone_in_turn(objects: list[list[str]]) -> None:
    journal = Journal()
    for some in objects:
        journal.do(*some)
    before = dict(journal.entries)
    while journal.in_force:
        assert len(journal.undo()) == 1
    while len(journal.in_force) < len(objects):
        assert len(journal.redo()) == 1
    assert journal.entries == before, "each in its old place"
