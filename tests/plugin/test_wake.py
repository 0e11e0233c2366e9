"""A signal handler may set what its own thread is just setting."""

from __future__ import annotations

import threading

from celery_allocator.plugin.wake import Wake


def test_it_is_kept_for_who_waits_next_and_cleared_by_that() -> None:
    wake = Wake()
    assert not wake.wait(0)
    wake.set()
    wake.set()
    assert wake.wait(20)
    assert not wake.wait(0)


def test_it_wakes_another_thread() -> None:
    wake, woken = Wake(), list[bool]()
    thread = threading.Thread(target=lambda: woken.append(wake.wait(20)))
    thread.start()
    wake.set()
    thread.join(20)
    assert woken == [True]


def test_setting_it_within_setting_it_does_not_hang() -> None:
    """As a signal handler that interrupts its own thread in the middle."""
    wake = Wake()
    notify = wake._condition.notify_all

    def interrupted() -> None:
        wake._condition.notify_all = notify  # type: ignore[method-assign]
        wake.set()
        notify()

    wake._condition.notify_all = interrupted  # type: ignore[method-assign]
    thread = threading.Thread(target=wake.set, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert wake.wait(0)
