"""Many actions as one: which allocations filters mean, one entry for each, one undo for all."""

from __future__ import annotations

import pytest

from celery_allocator.errors import ActionRefused, DuplicateAction, JournalMoved, LabelError
from celery_allocator.ledger import Options, Page
from celery_allocator.model import Requirements, State
from celery_allocator.operations import (
    Actor,
    Cancel,
    Command,
    Cordon,
    Front,
    Hold,
    Operator,
    Pause,
    Priority,
    Selection,
    Unhold,
    digest,
    select,
    selecting,
)
from tests.support.ledger_pool import LedgerPool


def operator(cluster: LedgerPool, **of: str) -> Operator:
    return Operator(cluster.ledger, Actor("ada", "test", **of), lambda _: None)


@pytest.fixture
def busy(cluster: LedgerPool) -> LedgerPool:
    """Six wait behind one that runs, of two names and tenants; one is on hold, one delayed."""
    cluster.node(gpus=(10_000,))
    cluster.running(10_000, 1, id="holder")
    for number in range(6):
        tenant, name = ("blue", "Train.big") if number % 2 else ("red", "train.small")
        need = Requirements(8_000 + number % 2, 1, 0, tenant=tenant)
        cluster.ledger.submit(f"w{number}", f"t{number}", name, need, message=b"m")
        cluster.at += 60
    cluster.submit(9_000, 2, id="later", task_name="train.small", eta_at=cluster.at + 500)
    cluster.submit(9_000, 2, id="held", task_name="train.small")
    cluster.ledger.hold("held")
    return cluster


def meant(cluster: LedgerPool, selection: Selection) -> list[str]:
    return [allocation.allocation_id for allocation in select(cluster.ledger, selection)]


def line(cluster: LedgerPool) -> list[str]:
    return [allocation.allocation_id for allocation in cluster.ledger.queue()]


# --- which are meant


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ["held", "later", "w0", "w1", "w2", "w3", "w4", "w5"]),
        (Selection(name="train.*"), ["held", "later", "w0", "w2", "w4"]),
        (Selection(name="*.big", older_than_s=200), ["w1"]),
        (Selection(tenant="blue"), ["w1", "w3", "w5"]),
        (Selection(tenant=""), ["held", "later"]),
        (Selection(states=(State.WAITING,), older_than_s=180), ["w0", "w1", "w2"]),
        (Selection(states=(State.DELAYED, State.ON_HOLD)), ["held", "later"]),
        (Selection(shape="8000:*:0"), ["w0", "w2", "w4"]),
        (Selection(shape="*:2:*"), ["held", "later"]),
        (Selection(states=(State.ON_HOLD,), on_hold_by="breaker"), []),
        (Selection(name="nobody"), []),
    ],
    ids=str,
)
def test_what_filters_mean(busy: LedgerPool, selection: Selection, expected: list[str]) -> None:
    assert meant(busy, selection) == expected


def test_what_can_mean_nothing_is_refused() -> None:
    for wrong in ({"shape": "8000"}, {"shape": "a:b:c"}, {"older_than_s": -1.0}, {"states": (State.RUNNING,)}):
        with pytest.raises(LabelError, match=f"{next(iter(wrong))}.*must be"):
            Selection(**wrong)  # type: ignore[arg-type]


def test_a_line_that_moves_up_between_two_pages_hides_nobody(busy: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "_PAGE", 3)
    monkeypatch.setattr(selecting, "_OVERLAP", 1)
    found: list[str] = []
    for allocation in selecting.not_granted(busy.ledger, (State.WAITING,)):
        if not found:  # the first page has been read
            busy.ledger.cancel("w0")
        found.append(allocation.allocation_id)
    assert found == ["w0", "w1", "w2", "w3", "w4", "w5"]


# --- one undo for all


def test_many_have_an_entry_each_and_one_undo(busy: LedgerPool) -> None:
    chief, before = operator(busy), digest(busy.ledger)
    chief.run(Pause())
    paused = digest(busy.ledger)
    found = meant(busy, Selection(name="train.small"))
    outcomes = list(chief.run_each(Cancel(name, only_waiting=True) for name in found))
    assert [(one.about, one.entry) for one in outcomes] == [(name, n) for n, name in enumerate(found, start=2)]
    assert line(busy) == ["w1", "w3", "w5"]
    entries = busy.ledger.journal()
    assert len({entry.batch for entry in entries if entry.action == "cancel"}) == 1 and entries[-1].batch == ""
    after = digest(busy.ledger)
    plan = chief.plan("undo", 4, together=True)
    assert [entry.number for entry in plan.entries] == [6, 5, 4, 3, 2] and plan.others == ()
    undone = list(chief.again_each("undo", 4))
    assert [one.entry for one in undone] == [6, 5, 4, 3, 2] and all(one.done for one in undone)
    assert digest(busy.ledger) == paused
    assert [one.entry for one in chief.again_each("redo")] == [2, 3, 4, 5, 6]
    assert digest(busy.ledger) == after
    assert len(list(chief.again_each("undo"))) == 5
    with pytest.raises(ActionRefused, match=r"undone already, and so are those it was taken together with"):
        list(chief.again_each("undo", 3))
    chief.undo(1)
    assert digest(busy.ledger) == before


def test_one_of_many_can_be_undone_alone_and_the_rest_after_it(busy: LedgerPool) -> None:
    chief = operator(busy)
    list(chief.run_each([Hold("w0"), Hold("w1"), Hold("w2")]))
    assert [effect.entry for effect in chief.undo(2)] == [2]
    assert [one.entry for one in chief.again_each("undo", 2)] == [3, 1]
    assert line(busy)[:3] == ["w0", "w1", "w2"]


@pytest.mark.parametrize("backwards", [True, False])
def test_several_moved_to_the_front_come_back_exactly(busy: LedgerPool, *, backwards: bool) -> None:
    before = digest(busy.ledger)
    names = ["w1", "w3", "w5"]
    chief = operator(busy)
    list(chief.run_each(Front(name) for name in (reversed(names) if backwards else names)))
    assert line(busy)[:3] == (names if backwards else names[::-1])
    list(chief.again_each("undo"))
    assert digest(busy.ledger) == before


# --- what is refused


def test_what_cannot_be_done_is_passed_over_and_told(busy: LedgerPool) -> None:
    busy.by_hand(10_000, 1, id="hand")
    outcomes = list(operator(busy).run_each([Hold("w0"), Hold("held"), Hold("nobody"), Hold("w1")]))
    assert [one.done for one in outcomes] == [True, False, False, True]
    assert [getattr(one.error, "code", None) for one in outcomes] == [None, "action_refused", "not_found", None]
    assert [entry.args["allocation_id"] for entry in busy.ledger.journal()] == ["w1", "w0"]


def test_what_was_granted_since_it_was_listed_is_left_alone(busy: LedgerPool) -> None:
    """By hand and granted, it is held by somebody: no filter over what waits means that."""
    for name in [*line(busy), "held", "later"]:
        busy.ledger.cancel(name)
    busy.by_hand(10_000, 1, id="hand")
    (listed,) = meant(busy, Selection())
    busy.ledger.release("holder")
    (outcome,) = operator(busy).run_each([Cancel(listed, only_waiting=True)])
    assert "has been granted meanwhile, and was left alone" in str(outcome.error)
    assert busy.ledger.get("hand").state is State.RUNNING
    operator(busy).run(Cancel("hand"))
    assert busy.ledger.entry(1).args == {"allocation_id": "hand"}, "no more than was said"


def test_an_undo_of_all_passes_over_what_cannot_be_undone(busy: LedgerPool) -> None:
    chief = operator(busy)
    list(chief.run_each([Hold("w0"), Hold("w1"), Hold("w2")]))
    list(chief.run_each([Unhold("w0"), Unhold("w1"), Unhold("w2")]))
    busy.ledger.release("holder")
    assert busy.ledger.get("w0").state is State.GRANTED
    undone = list(chief.again_each("undo", 1, cascade=True))
    told = [(one.about.split()[:3], one.done) for one in undone]
    assert told == [
        (["6", "unhold", "w2"], True),
        (["5", "unhold", "w1"], True),
        (["4", "unhold", "w0"], False),
        (["3", "hold", "w2"], True),
        (["2", "hold", "w1"], True),
        (["1", "hold", "w0"], False),
    ]
    assert "can be put on hold; w0 is granted" in str(undone[2].error)
    assert "cannot undo 1 hold w0 by ada: 4 unhold w0 by ada could not be undone" in str(undone[5].error)
    assert [entry.state for entry in busy.ledger.journal()] == ["undone", "undone", "done"] * 2


def test_what_stands_on_one_of_them_is_not_undone_without_a_cascade(busy: LedgerPool) -> None:
    chief = operator(busy)
    list(chief.run_each([Hold("w0"), Hold("w1")]))
    chief.run(Priority("w0", 3))
    with pytest.raises(ActionRefused, match=r"later actions depend on it. First undo: 3 priority w0 3"):
        list(chief.again_each("undo", 1))
    plan = chief.plan("undo", 1, cascade=True, together=True)
    assert [entry.number for entry in plan.others] == [3]
    assert [one.entry for one in chief.again_each("undo", 1, cascade=True, agreed=[1, 2, 3])] == [3, 2, 1]


def test_more_than_the_journal_remembers_is_refused_unless_that_is_known(busy: LedgerPool) -> None:
    busy.ledger.options = Options(journal_maxlen=2)
    chief, commands = operator(busy), [Hold("w0"), Hold("w1"), Hold("w2")]
    with pytest.raises(ActionRefused, match="would be 3 actions, and the journal remembers no more than 2"):
        chief.run_each(commands)
    assert busy.ledger.journal() == ()
    assert all(one.done for one in chief.run_each(commands, beyond_journal=True))
    assert [one.entry for one in chief.again_each("undo")] == [3, 2]


# --- others act meanwhile, and calls that are repeated


def test_whoever_acts_meanwhile_does_not_stop_an_undo_of_all(busy: LedgerPool) -> None:
    chief = operator(busy)
    list(chief.run_each(Hold(f"w{number}") for number in range(6)))
    undone = []
    for number, outcome in enumerate(chief.again_each("undo"), start=1):
        undone.append(outcome.entry)
        operator(busy).run(Cordon("n1") if number % 2 else Priority("later", number))
    assert undone == [6, 5, 4, 3, 2, 1]


def test_whoever_is_always_overtaken_gives_up(busy: LedgerPool) -> None:
    chief = operator(busy)
    list(chief.run_each([Hold("w0"), Hold("w1")]))
    read = busy.ledger.journal_page

    def overtaken(*args: int) -> Page:
        page = read(*args)
        busy.ledger.pause(stop=True, note=chief.actor.note("pause", {}))
        return page

    busy.ledger.journal_page = overtaken  # type: ignore[method-assign]
    with pytest.raises(JournalMoved):
        list(chief.again_each("undo", 1))


def test_the_same_many_under_the_same_key_are_taken_once(busy: LedgerPool) -> None:
    keyed = operator(busy, once="sweep")
    commands: list[Command] = [Hold("w0"), Hold("w1")]
    first = list(keyed.run_each(commands))
    again = list(keyed.run_each([*commands, Hold("w2")]))
    assert [one.done for one in again] == [False, False, True]
    assert [one.error.entry for one in again if isinstance(one.error, DuplicateAction)] == [one.entry for one in first]
