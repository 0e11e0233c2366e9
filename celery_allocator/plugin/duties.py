"""What this worker does for the whole pool when it is its turn: circuit breakers, updates from other systems."""

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps

from celery_allocator.gate.warden import Warden, breaker_settings
from celery_allocator.ledger import Ledger
from celery_allocator.plugin.courier import Courier
from celery_allocator.plugin.duty import Duty
from celery_allocator.plugin.live import STEP_S, LiveChanges, LiveUpdates
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.session import session

#: Seconds after which somebody else has the duties of a worker that is gone.
_LEASE_S = 10.0


class DutiesStep(bootsteps.StartStopStep):
    """Consumer step: takes part in the pool's duties while the worker serves a device."""

    name = "AllocatorDuties"
    # Before the step with which the worker comes and goes (it requires this one), so that it ends after it: at a cold
    # shutdown nothing may hold up leaving the ledger.
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.duties = duties(parent.app, parent.hostname) if session(parent.app).keeper is not None else []

    def include_if(self, parent: Any) -> bool:
        """Only a worker that serves a device, and only if there is anything to do."""
        return bool(self.duties)

    def start(self, parent: Any) -> None:
        """Begin; again after a lost connection to the broker, which changes nothing here."""
        for duty in self.duties:
            duty.start()

    def shutdown(self, parent: Any) -> None:
        """Leave them to others."""
        for duty in self.duties:
            duty.stop()


def duties(app: Celery, worker: str) -> list[Duty]:
    """The duties that the settings ask for. Raises :class:`~celery_allocator.errors.SettingsError`."""
    current = session(app)
    found: list[Duty] = []

    def connect() -> Ledger:
        return current.connect(current.settings)

    if (breakers := breaker_settings(current.settings.breaker)) is not None:
        messages = Courier("breakers", lambda grants: publish_grants(app, grants), lambda g: (g.allocation_id, g.token))
        warden = Warden(breakers, messages.hand_over)
        found.append(Duty("breakers", worker, connect, warden.step, warden.retire))
    if current.settings.updates:
        updates = LiveUpdates(app, worker, _LEASE_S)
        found.append(Duty("updates", worker, connect, updates.step, updates.retire, every_s=STEP_S, lease_s=_LEASE_S))
    if current.settings.changes:
        changes = LiveChanges()
        found.append(Duty("changes", worker, connect, changes.step, changes.retire, every_s=STEP_S, lease_s=_LEASE_S))
    return found
