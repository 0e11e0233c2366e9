"""One worker at a time has a duty; another takes it over when that one leaves or is gone."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from celery_allocator.errors import LedgerUnavailable
from celery_allocator.ledger import Ledger
from celery_allocator.plugin.duty import Duty
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

Make = Callable[..., tuple[Duty, list[str]]]


@pytest.fixture
def make(redis_server: RedisServer, pool: str) -> Iterator[Make]:
    made: list[Duty] = []

    # A lease that no loaded machine lets run out, unless a test says otherwise.
    def duty(
        holder: str,
        step: Callable[[Ledger], None] | None = None,
        lease_s: float = 60,
        wanted: Callable[[], bool] = lambda: True,
    ) -> tuple[Duty, list[str]]:
        said: list[str] = []

        def take_step(ledger: Ledger) -> None:
            said.append("step")
            if step is not None:
                step(ledger)

        def connect() -> Ledger:
            return Ledger(redis.Redis.from_url(redis_server.socket_url), pool)

        retire = functools.partial(said.append, "retired")
        duty = Duty("test", holder, connect, take_step, retire, every_s=0.02, lease_s=lease_s, wanted=wanted)
        made.append(duty)
        return made[-1], said

    yield duty
    for one in made:
        one.stop()


def test_one_has_it_and_the_next_takes_over_when_it_stops(make: Make) -> None:
    (first, by_first), (second, by_second) = make("one"), make("two")
    first.start()
    wait_until(lambda: by_first, 30, "the first step")
    second.start()
    seen = len(by_first)
    wait_until(lambda: len(by_first) > seen + 5, 30, "more steps of the first")
    assert by_second == []
    first.stop()
    ended = len(by_first)
    wait_until(lambda: by_second, 30, "a step of the second")
    assert len(by_first) == ended


def test_who_is_held_up_past_its_lease_retires(make: Make) -> None:
    held_up = threading.Event()
    (first, by_first), (second, by_second) = make("one", lambda _: held_up.wait(60) and None, 0.5), make("two")
    first.start()
    wait_until(lambda: by_first, 30, "the first step")
    second.start()
    wait_until(lambda: by_second, 30, "the second to take over")
    held_up.set()
    wait_until(lambda: "retired" in by_first, 30, "the first to notice")
    assert "retired" not in by_second


def test_a_step_that_fails_is_told_of_once_and_tried_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Ledger) -> None:
        raise LedgerUnavailable("away")

    caplog.set_level(logging.INFO)
    duty, said = make("one", fail)
    duty.start()
    wait_until(lambda: len(said) > 5, 30, "more tries")
    assert len([record for record in caplog.records if "away" in record.getMessage()]) == 1


def test_a_duty_is_the_holders_own(redis_server: RedisServer, pool: str) -> None:
    with redis_server.client() as client:
        ledger = Ledger(client, pool)
        assert ledger.take_duty("a", "one", 60)
        assert ledger.take_duty("a", "one", 60)
        assert not ledger.take_duty("a", "two", 60)
        assert ledger.take_duty("b", "two", 60)
        ledger.give_up_duty("a", "two")  # not its own
        assert not ledger.take_duty("a", "two", 60)
        ledger.give_up_duty("a", "one")
        assert ledger.take_duty("a", "two", 60)


def test_it_is_left_to_others_while_it_is_not_wanted(make: Make) -> None:
    wants = threading.Event()
    (first, by_first), (second, by_second) = make("one", wanted=wants.is_set), make("two")
    first.start()
    wants.set()
    wait_until(lambda: by_first, 30, "the first step")
    assert first.has_it
    second.start()
    wants.clear()
    wait_until(lambda: by_second, 30, "a step of the second")
    wait_until(lambda: by_first[-1] == "retired", 30, "the first one to know")
    assert not first.has_it and second.has_it
    wants.set()
    second.stop()
    wait_until(lambda: by_first[-1] == "step", 30, "the first one to have it again")
