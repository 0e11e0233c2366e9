"""The desk: answers in time, or says that there was none; one thing after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from celery_allocator.errors import ActionRefused, AllocatorError, LedgerUnavailable
from celery_allocator.ledger import Ledger
from celery_allocator.plugin.desk import Desk
from tests.support.waiting import wait_until

#: Seconds for an answer that is to come: the usual half of one may be over on a busy machine.
SOON_S = 30.0


@pytest.fixture
def desk(ledger: Ledger) -> Iterator[Desk]:
    return Desk(lambda: ledger)


def test_what_is_done_comes_back_and_what_is_raised_too(desk: Desk, ledger: Ledger) -> None:
    assert desk.ask(lambda at: at is ledger, SOON_S) is True

    def refuse(_: Ledger) -> None:
        raise ActionRefused("no")

    with pytest.raises(ActionRefused, match="no"):
        desk.ask(refuse, SOON_S)
    assert desk.ask(lambda at: at.pool, SOON_S) == ledger.pool


def test_it_does_not_do_it_where_it_is_asked(desk: Desk) -> None:
    assert desk.ask(lambda _: threading.current_thread().name, SOON_S) == "allocator-remote"


def test_a_ledger_that_does_not_answer_holds_nobody_up(desk: Desk) -> None:
    answers = threading.Event()
    done: list[str] = []

    def slow(_: Ledger) -> str:
        assert answers.wait(30)
        done.append("it")
        return "done"

    with pytest.raises(LedgerUnavailable, match="may still be done"):
        desk.ask(slow, patience_s=0.01)
    with pytest.raises(LedgerUnavailable, match="this one is not carried out"):
        desk.ask(lambda _: done.append("another"))
    answers.set()
    wait_until(lambda: done, 10)
    assert wait_until(lambda: _answered(desk), 10) == "again"
    assert done == ["it"]


def _answered(desk: Desk) -> str:
    try:
        return str(desk.ask(lambda _: "again"))
    except LedgerUnavailable:
        return ""


def test_an_unexpected_error_is_an_answer(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AllocatorError, match="log tells"):
        desk.ask(lambda _: 1 // 0, SOON_S)
    wait_until(lambda: "ZeroDivisionError" in caplog.text, 10)
    assert desk.ask(lambda _: "well", SOON_S) == "well"
