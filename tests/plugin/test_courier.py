"""Couriers wait for brokers and backends, so that nobody else has to."""

from __future__ import annotations

import threading

from celery_allocator.plugin.courier import Courier
from tests.support.waiting import wait_until


def test_who_hands_over_does_not_wait_and_nothing_is_taken_twice() -> None:
    open_again, delivered = threading.Event(), list[str]()

    def deliver(things: list[str]) -> None:
        assert open_again.wait(20)
        delivered.extend(things)

    courier = Courier("test", deliver, str)
    courier.hand_over(["a"])
    wait_until(lambda: not courier._waiting, 30, "the first to be on its way")
    courier.hand_over(["a", "b"])
    courier.hand_over(["b", "c"])
    assert delivered == []
    assert not courier.finish(0.05)
    open_again.set()
    assert courier.finish(20)
    assert delivered == ["a", "b", "c"]
    courier.hand_over(["a"])
    assert courier.finish(20)
    assert delivered == ["a", "b", "c", "a"], "what was delivered may come again"


def test_one_that_fails_goes_on_with_the_next() -> None:
    delivered = list[str]()

    def deliver(things: list[str]) -> None:
        if "bad" in things:
            raise OSError("no route")
        delivered.extend(things)

    courier = Courier("test", deliver, str)
    courier.hand_over(["bad"])
    assert courier.finish(20)
    courier.hand_over(["good"])
    assert courier.finish(20)
    assert delivered == ["good"]
