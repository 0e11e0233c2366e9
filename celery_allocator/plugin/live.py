"""Live updates in a worker: what the duties ``updates`` and ``changes`` do in each of their steps."""

from __future__ import annotations

import time

from celery import Celery

from celery_allocator.ledger import Ledger
from celery_allocator.operations import Effect
from celery_allocator.plugin import deliveries
from celery_allocator.updates import Intake, Listener, Relay

#: Seconds that a step lasts, in which it waits for what comes.
STEP_S = 0.5
#: Seconds between renewals of the duty while an update of many actions is carried out.
_RENEW_S = 2.0


class LiveUpdates:
    """Takes updates, from their stream and their channel. Messages and results go by couriers of its own."""

    name = "updates"

    def __init__(self, app: Celery, holder: str, lease_s: float) -> None:
        self._holder = holder
        self._lease_s = lease_s
        self._messages = deliveries.messages(app, "updates")
        self._results = deliveries.results(app, "updates-results")
        self._intake = Intake(self._settle, self._renew)
        self._listener = Listener()
        self._renewed = 0.0

    def step(self, ledger: Ledger) -> None:
        """Take what comes within :data:`STEP_S` seconds."""
        self._renewed = began = time.monotonic()
        self._listener.step(ledger)
        while (left := began + STEP_S - time.monotonic()) > 0:
            self._intake.step(ledger, left)

    def retire(self) -> None:
        """Somebody else takes them now."""
        self._listener.retire()

    def _settle(self, effect: Effect) -> None:
        self._messages.hand_over(effect.grants)
        self._results.hand_over(effect.obituaries)

    def _renew(self, ledger: Ledger) -> None:
        if time.monotonic() - self._renewed > _RENEW_S:
            self._renewed = time.monotonic()
            # Should somebody else have it by now, what both do is done once all the same.
            ledger.take_duty(self.name, self._holder, self._lease_s)


class LiveChanges:
    """Relays changes to their stream and their channel."""

    name = "changes"

    def __init__(self) -> None:
        self._relay = Relay()

    def step(self, ledger: Ledger) -> None:
        """Relay what comes within :data:`STEP_S` seconds."""
        end = time.monotonic() + STEP_S
        while (left := end - time.monotonic()) > 0:
            self._relay.step(ledger, left)

    def retire(self) -> None:
        """Somebody else relays now."""
        self._relay.retire()
