"""A flag that a thread waits for and that a signal handler may set.

Celery ends tasks from within signal handlers. Those interrupt the main thread anywhere, also in the middle of
``threading.Event.set``, whose lock the same thread then would wait for without end.
"""

from __future__ import annotations

import threading


class Wake:
    """Like an event that is cleared by whoever waits for it; setting it again in the middle of setting it is safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.RLock())
        self._set = False

    def set(self) -> None:
        """Wake who waits, or who waits next."""
        with self._condition:
            self._set = True
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, for at most ``timeout_s`` seconds, and clear it; whether it was set."""
        with self._condition:
            if not self._set:
                self._condition.wait(timeout_s)
            was_set, self._set = self._set, False
            return was_set
