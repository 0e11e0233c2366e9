"""Couriers: threads that talk to brokers and result backends, so that the keeper's thread talks to the ledger alone.

A broker or a result backend that is away can hold whoever talks to it for as long as it is away. A worker whose
heartbeats waited with it would lose its lease, and with it what it runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

logger = logging.getLogger(__name__)


class Courier:
    """Delivers what it is given, in order, each thing once at a time: what is on its way is not taken twice.

    ``deliver`` gets several at once, and says itself what it could not do; ``key`` tells things apart. Thread-safe. The
    thread starts with the first thing there is to deliver.
    """

    def __init__(self, name: str, deliver: Callable[[list[Any]], None], key: Callable[[Any], Hashable]) -> None:
        self._name = name
        self._deliver = deliver
        self._key = key
        self._state = threading.Condition()
        self._waiting: dict[Hashable, Any] = {}
        self._on_their_way: dict[Hashable, Any] = {}
        self._thread: threading.Thread | None = None

    def hand_over(self, things: Iterable[Any]) -> None:
        """Have these delivered. Returns at once."""
        with self._state:
            for thing in things:
                key = self._key(thing)
                if key not in self._on_their_way:
                    self._waiting.setdefault(key, thing)
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"allocator-{self._name}", daemon=True)
                self._thread.start()
            self._state.notify_all()

    def finish(self, timeout_s: float) -> bool:
        """Wait until everything has been delivered, for at most ``timeout_s`` seconds; whether it was."""
        deadline = time.monotonic() + timeout_s
        with self._state:
            while self._waiting or self._on_their_way:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._state.wait(left)
        return True

    def _run(self) -> None:
        while True:
            with self._state:
                while not self._waiting:
                    self._state.wait()
                self._on_their_way, self._waiting = self._waiting, {}
            try:
                self._deliver(list(self._on_their_way.values()))
            except Exception:
                logger.exception("%s: not delivered; the ledger has it told again", self._name)
            with self._state:
                self._on_their_way = {}
                self._state.notify_all()
