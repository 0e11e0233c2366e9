"""Signals that ask a command to end, at the moments at which Python would lose them."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from celery_allocator.ledger import Ledger
from celery_allocator.surfaces.cli import allocator
from celery_allocator.surfaces.cli.ending import asked_to_end, no_signal_lost
from tests.support import by_hand
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Finalized:
    """Does something when it is dropped."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def ask(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@contextmanager
def reports() -> Iterator[list[type[BaseException]]]:
    """What Python would have shown meanwhile."""
    reported: list[type[BaseException]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))
        yield reported


def test_ctrl_c_in_a_finalizer_comes_once_more_and_is_not_reported() -> None:
    with reports() as reported:
        usual = sys.unraisablehook
        with pytest.raises(KeyboardInterrupt), no_signal_lost():  # noqa: PT012 (the second one ends the wait)
            Finalized(ask(signal.SIGINT))
            threading.Event().wait(30)
        assert sys.unraisablehook is usual
        with no_signal_lost():
            Finalized(lambda: {}["not ours"])
    assert reported == [KeyError]


def test_what_came_in_a_finalizer_is_not_sent_when_all_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(signal, "pthread_kill", lambda _, number: sent.append(number))
    threads = _thread._count()
    with reports(), no_signal_lost():
        Finalized(ask(signal.SIGINT))
    wait_until(lambda: _thread._count() == threads, message="the end of what would send it")
    assert sent == []


def test_a_command_that_follows_ends_by_ctrl_c_in_a_finalizer(
    redis_server: RedisServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand.session(redis_server, pool).offer_host(600)
    looks: list[str] = []

    def events(_: Ledger, last: str, __: int) -> tuple[Any, ...]:
        assert len(looks) < 50, "it goes on"
        looks.append(last)
        Finalized(ask(signal.SIGINT) if len(looks) == 1 else list)
        return ()

    monkeypatch.setattr(Ledger, "events", events)
    with reports() as reported:
        done = CliRunner().invoke(allocator, ["events", "--follow"], env=by_hand.environment(redis_server, pool))
    assert (done.exit_code, done.output.strip(), reported) == (0, "", [])
    assert looks


@pytest.mark.parametrize("number", NUMBERS)
def test_who_is_asked_while_it_holds_the_events_lock_ends(number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with asked_to_end() as stop:
        with stop._cond:  # type: ignore[attr-defined]  # as in the middle of wait()
            os.kill(os.getpid(), number)
        assert stop.wait(30)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_who_is_not_asked_goes_on_and_leaves_no_thread() -> None:
    before = threading.enumerate()
    with asked_to_end() as stop:
        assert set(threading.enumerate()) > set(before)
    assert not stop.is_set()
    assert threading.enumerate() == before
