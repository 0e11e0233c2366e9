"""An operator's calls that are repeated, cut short, overtaken, or meet a journal that is damaged or has forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_allocator.errors import (
    ActionRefused,
    AllocatorError,
    DuplicateAction,
    EntryNotFound,
    JournalMoved,
    LabelError,
    LedgerError,
)
from celery_allocator.ledger import keys, scripts
from celery_allocator.model import State
from celery_allocator.operations import (
    Actor,
    Allocate,
    Cancel,
    Command,
    Cordon,
    Drain,
    Effect,
    Front,
    Hold,
    Operator,
    Pause,
    Priority,
    Release,
    Resume,
    Uncordon,
    Unhold,
    digest,
)
from tests.support.ledger_pool import LedgerPool


def operator(cluster: LedgerPool, settle: Callable[[Effect], None] | None = lambda _: None, **of: str) -> Operator:
    return Operator(cluster.ledger, Actor("ada", "test", **of), settle)


@pytest.fixture
def busy(cluster: LedgerPool) -> LedgerPool:
    """Something waits (``a``, ``b``), is on hold (``h``), and is held by hand (``mine``)."""
    cluster.node(gpus=(10_000, 10_000))
    for name in ("one", "two"):
        cluster.running(9_000, 1, id=name)
    cluster.by_hand(1_000, 1, id="mine")
    for name in ("a", "b", "h"):
        cluster.submit(10_000, id=name)
    cluster.ledger.hold("h")
    return cluster


ACTIONS: list[Command] = [
    Cordon("n1"),
    Drain("n1/gpu_0"),
    Uncordon("n1"),
    Pause(),
    Resume(),
    Hold("a"),
    Unhold("h"),
    Priority("a", 7),
    Front("b"),
    Cancel("a"),
    Release("mine"),
]


# --- a call whose reply was lost


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.action)
def test_a_call_that_the_client_repeats_is_taken_once(
    busy: LedgerPool, monkeypatch: pytest.MonkeyPatch, action: Command
) -> None:
    """The connection is cut before the reply: the client sends the same again, and is told what it missed."""
    before, run = digest(busy.ledger), scripts.run
    monkeypatch.setattr(scripts, "run", lambda *args: (run(*args), run(*args))[1])
    chief = operator(busy, once="key")
    effect = chief.run(action)
    assert [(e.number, e.action, e.state) for e in busy.ledger.journal()] == [(effect.entry, action.action, "done")]
    after = digest(busy.ledger)
    assert [e.entry for e in operator(busy).undo()] == [effect.entry]
    assert digest(busy.ledger) == before
    assert [e.entry for e in operator(busy).redo()] == [effect.entry]
    assert digest(busy.ledger) == after
    with pytest.raises(DuplicateAction):
        chief.run(action)
    assert busy.ledger.journal_page().seen == 3


def test_the_grants_of_a_repeated_call_are_told_again(busy: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    busy.ledger.pause(stop=True)
    busy.ledger.release("one")
    busy.ledger.release("mine")
    run = scripts.run
    monkeypatch.setattr(scripts, "run", lambda *args: (run(*args), run(*args))[1])
    told: list[Effect] = []
    operator(busy, told.append).run(Resume())
    (effect,) = told
    assert [(grant.allocation_id, grant.message) for grant in effect.grants] == [("a", b"message of a")]


# --- idempotency keys


def test_an_undo_under_the_same_key_again_is_a_duplicate_and_nothing_is_done_before_that_is_known(
    busy: LedgerPool,
) -> None:
    for action in (Cordon("n1"), Cordon("n1/gpu_0"), Drain("n1")):
        operator(busy).run(action)
    keyed = operator(busy, once="key")
    assert [effect.entry for effect in keyed.undo(1, cascade=True)] == [3, 2, 1]
    with pytest.raises(DuplicateAction) as refused:
        keyed.undo(1, cascade=True)
    assert refused.value.entry == 1
    operator(busy).redo(3, cascade=True)
    with pytest.raises(DuplicateAction):
        keyed.undo(1, cascade=True)
    assert {entry.state for entry in busy.ledger.journal()} == {"done"}, "not even those that stand in the way"
    with pytest.raises(DuplicateAction):
        keyed.undo()
    operator(busy).undo(2, cascade=True)
    with pytest.raises(DuplicateAction):
        keyed.redo(3, cascade=True)
    assert [entry.state for entry in busy.ledger.journal()] == ["undone", "undone", "done"]


def test_a_key_is_forgotten_after_a_week_and_not_before(busy: LedgerPool) -> None:
    operator(busy, once="key").run(Pause())
    ttl = busy.ledger.client.pttl(keys.key(busy.ledger.pool, "once", "key"))
    assert 6.9 * 86400e3 < ttl <= 7 * 86400e3
    assert busy.ledger.applied("key") == 1
    assert busy.ledger.applied("another") is None


@pytest.mark.parametrize(
    ("what", "value"),
    [("reason", "x" * 256), ("reason", "two\nlines"), ("name", ""), ("name", "\ud800"), ("once", "\0")],
)
def test_what_cannot_be_recorded_is_refused_with_the_rule(what: str, value: str) -> None:
    with pytest.raises(LabelError, match="must be 1 to 255 printable characters"):
        Actor(**{"name": "ada", what: value})


# --- others act meanwhile


def test_what_was_agreed_to_is_undone_and_no_more(busy: LedgerPool) -> None:
    chief = operator(busy)
    chief.run(Cordon("n1"))
    chief.run(Drain("n1/gpu_0"))
    plan = chief.plan("undo", 1, cascade=True)
    chief.run(Cordon("n1/gpu_1"))
    with pytest.raises(ActionRefused, match=r"it takes also 3 cordon n1/gpu_1 by ada. Look at the plan again"):
        chief.undo(1, cascade=True, agreed=[entry.number for entry in plan.entries])
    assert [entry.state for entry in busy.ledger.journal()] == ["done"] * 3
    chief.undo(3)
    assert len(chief.undo(1, cascade=True, agreed=[entry.number for entry in plan.entries])) == 2


def test_a_cascade_that_is_overtaken_goes_on_from_where_it_is(busy: LedgerPool) -> None:
    for action in (Cordon("n1"), Drain("n1/gpu_0")):
        operator(busy).run(action)

    def settle(_: Effect) -> None:
        if busy.ledger.journal_page().seen == 3:  # after the first step: somebody else, on something else
            operator(busy).run(Priority("a", 3))

    assert [effect.entry for effect in operator(busy, settle).undo(1, cascade=True)] == [2, 1]


def test_whoever_is_always_overtaken_gives_up_and_says_what_was_done(busy: LedgerPool) -> None:
    chief = operator(busy)
    chief.run(Cordon("n1"))
    plan = busy.ledger.journal_page
    busy.ledger.journal_page = lambda *args: (plan(*args), operator(busy).ledger.pause(  # type: ignore[method-assign]
        stop=True, note=chief.actor.note("pause", {})))[0]  # fmt: skip
    with pytest.raises(JournalMoved):
        chief.undo(1)
    assert busy.ledger.entry(1).state == "done"


def test_a_cascade_that_cannot_go_on_says_what_was_done_before(busy: LedgerPool) -> None:
    chief = operator(busy)
    chief.run(Hold("a"))
    chief.run(Priority("a", 3))
    chief.run(Unhold("a"))
    busy.ledger.release("one")
    busy.ledger.release("mine")
    assert busy.ledger.get("a").state is State.GRANTED
    with pytest.raises(ActionRefused, match="can be put on hold"):
        chief.undo(1, cascade=True)
    busy.ledger.cancel("a")
    chief.run(Cordon("n1"))
    chief.run(Cordon("n1/gpu_0"))
    busy.ledger.client.hset(keys.key(busy.ledger.pool, "entry", "4"), "args", '{"target": "nowhere"}')
    with pytest.raises(ActionRefused, match=r"nowhere.* Done before that: as before: n1/gpu_0 cordoned"):
        chief.undo(4, cascade=True)


def test_an_action_on_what_has_ended_by_itself_cannot_be_undone_and_says_so(busy: LedgerPool) -> None:
    note = operator(busy).actor.note(Allocate.action, {"allocation_id": "made"})
    busy.by_hand(0, 1, id="made", ttl_s=5, note=note)
    busy.at += 6
    busy.ledger.tick()
    with pytest.raises(AllocatorError, match="made"):
        operator(busy).undo()


# --- places in line


def test_a_place_comes_back_exactly_through_front_and_priority(busy: LedgerPool) -> None:
    chief, before = operator(busy), digest(busy.ledger)
    steps = [Front("b"), Priority("b", -5), Front("b"), Front("a"), Priority("a", 900), Front("b"), Front("h")]
    states = [before]
    for step in steps:
        chief.run(step)
        states.append(digest(busy.ledger))
    for state in reversed(states[:-1]):
        chief.undo()
        assert digest(busy.ledger) == state
    for state in states[1:]:
        chief.redo()
        assert digest(busy.ledger) == state


def test_a_front_that_is_redone_takes_its_place_or_another_where_that_is_taken(busy: LedgerPool) -> None:
    chief = operator(busy)
    busy.submit(10_000, id="c")
    chief.run(Front("b"))
    chief.run(Front("c"))
    chief.undo(1)
    assert [a.allocation_id for a in busy.ledger.queue()] == ["c", "a", "b"]
    chief.redo(1)
    assert [a.allocation_id for a in busy.ledger.queue()] == ["c", "b", "a"], "as it was"
    chief.undo(1)
    chief.undo(2)
    chief.run(Front("c"))  # where b was
    chief.redo(1)
    assert [a.allocation_id for a in busy.ledger.queue()] == ["b", "c", "a"]
    with pytest.raises(AllocatorError, match="never was"):
        chief.run(Front("nobody"))


# --- nodes and devices


def test_a_device_that_came_later_belongs_to_what_was_done_to_its_node(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    chief = operator(cluster)
    chief.run(Cordon("n1"))
    cluster.node(gpus=(10_000, 10_000))
    chief.run(Drain("n1/gpu_1"))
    with pytest.raises(ActionRefused, match=r"later actions depend on it. First undo: 2 drain n1/gpu_1"):
        chief.undo(1)
    assert [effect.entry for effect in chief.undo(1, cascade=True)] == [2, 1]
    assert {d.state for d in cluster.ledger.snapshot().devices} == {"ready"}
    chief.redo(2, cascade=True)
    assert "device:n1/gpu_1" in cluster.ledger.entry(1).objects


# --- what the journal has forgotten


def test_what_stands_under_a_forgotten_action_is_not_undone(busy: LedgerPool) -> None:
    """The oldest entry was redone last; when it falls out, it is in force still, on top of a later one."""
    busy.ledger.options = type(busy.ledger.options)(journal_maxlen=3)
    chief = operator(busy)
    chief.run(Priority("a", 1))
    chief.undo(1)
    chief.run(Hold("a"))
    chief.undo(2)
    chief.redo(1)  # takes a new place, after the hold
    assert busy.ledger.entry(1).done_op > busy.ledger.entry(2).done_op
    for _ in range(2):
        chief.run(Pause())
    assert [entry.number for entry in busy.ledger.journal()] == [4, 3, 2]
    with pytest.raises(EntryNotFound):
        busy.ledger.entry(1)
    with pytest.raises(ActionRefused, match=r"cannot redo 2 hold a by ada: .* not in the journal any more"):
        chief.redo(2)
    assert [effect.entry for effect in (*chief.undo(), *chief.undo())] == [4, 3]
    assert busy.ledger.get("a").priority == 1


# --- a journal that is damaged


def harm(cluster: LedgerPool, number: int, how: str) -> None:
    client: Any = cluster.ledger.client
    key = keys.key(cluster.ledger.pool, "entry", str(number))
    if how in ("lost", "of another type"):
        client.delete(key)
    if how == "of another type":
        client.set(key, "nonsense")
    elif how != "lost":
        field, _, value = how.partition("=")
        client.hset(key, field, value) if value else client.hdel(key, field)


HARM = ["lost", "of another type", "args=[1", "args=[]", "before=null", "done=nonsense", "at=", "state=lost",
        "objects=", "undone=x", "state=undone"]  # fmt: skip


@pytest.mark.parametrize("how", HARM)
def test_a_damaged_entry_is_named_and_hides_no_other(busy: LedgerPool, how: str) -> None:
    chief = operator(busy)
    for action in (Cordon("n1"), Hold("a"), Pause()):
        chief.run(action)
    if how == "undone=x":
        chief.undo(3)
        chief.undo(2)
    harm(busy, 2, how)
    assert [entry.number for entry in busy.ledger.journal()] == [3, 1]
    with pytest.raises(LedgerError, match=r"journal entry 2 .*is damaged"):
        busy.ledger.entry(2)
    for call in (chief.undo, chief.redo, lambda: chief.undo(1, cascade=True)):
        with pytest.raises(LedgerError, match=r"cannot .*do: the record of journal entry 2 .*repair"):
            call()
    assert busy.ledger.verify() == ["entry 2 of the journal is damaged"]
    assert busy.ledger.repair().left == ()
    assert [entry.number for entry in busy.ledger.journal()] == [3, 1]
    with pytest.raises(EntryNotFound):
        busy.ledger.entry(2)
    with pytest.raises(ActionRefused, match="not in the journal any more"):
        chief.undo(1)  # what was done after it is not known
    if how in ("lost", "of another type", "done=nonsense", "undone=x"):
        return  # its place is lost: nothing that was taken before the repair can be undone
    assert [effect.entry for effect in chief.undo()] == [3]


def test_an_entry_whose_contents_are_another_actions_is_damaged_too(busy: LedgerPool) -> None:
    chief = operator(busy)
    chief.run(Priority("a", 3))
    for field, value in (("before", "{}"), ("before", '{"priority": "much"}'), ("args", '{"priority": 3}')):
        busy.ledger.client.hset(keys.key(busy.ledger.pool, "entry", "1"), field, value)
        with pytest.raises(AllocatorError, match=r"journal entry 1|priority needs"):
            chief.undo()
    busy.ledger.client.zadd(keys.key(busy.ledger.pool, "journal"), {"stranger": 7})
    with pytest.raises(LedgerError, match="stranger"):
        chief.undo()
    assert len(busy.ledger.journal()) == 1
    busy.ledger.repair()
    assert len(busy.ledger.journal_page().damage) == 0
