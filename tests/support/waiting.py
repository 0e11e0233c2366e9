"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    timeout: float = 30.0,
    message: str | Callable[[], str] = "",
    interval: float = 0.02,
) -> T:
    """Poll ``predicate`` until it is truthy and return its value; fail the test after ``timeout`` seconds.

    ``message`` says what was waited for; a callable is asked at the deadline, so that it can show the last state.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {timeout:g} s: {text or predicate!r} (last value {value!r})")
        time.sleep(interval)
