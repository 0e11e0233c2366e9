"""What this worker does for the whole pool when it is its turn: breakers, updates from other systems, Celery events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps

from celery_allocator.gate.warden import Warden, breaker_settings
from celery_allocator.ledger import Ledger
from celery_allocator.plugin import deliveries
from celery_allocator.plugin.celery_events import CeleryEvents
from celery_allocator.plugin.duty import Duty
from celery_allocator.plugin.live import STEP_S, LiveChanges, LiveUpdates
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
        self.duties: list[Duty] = []
        current = session(parent.app)
        if current.keeper is not None:
            current.duties = self.duties = duties(parent.app, parent.hostname, lambda: sends_task_events(parent))

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


def sends_task_events(consumer: Any) -> bool:
    """Whether this worker's task events are on: by ``-E``, or switched on since by ``celery control enable_events``."""
    dispatcher = consumer.event_dispatcher
    if dispatcher is None or not dispatcher.enabled:
        return False
    return not dispatcher.groups or "task" in dispatcher.groups


def duties(app: Celery, worker: str, task_events: Callable[[], bool] | None = None) -> list[Duty]:
    """The duties that the settings ask for. Raises :class:`~celery_allocator.errors.SettingsError`.

    ``task_events``: whether Celery events are told where ``allocator_celery_events`` leaves that open.
    """
    current = session(app)
    found: list[Duty] = []

    def connect() -> Ledger:
        return current.connect(current.settings)

    if (breakers := breaker_settings(current.settings.breaker)) is not None:
        warden = Warden(breakers, deliveries.messages(app, "breakers").hand_over)
        found.append(Duty("breakers", worker, connect, warden.step, warden.retire))
    if current.settings.updates:
        updates = LiveUpdates(app, worker, _LEASE_S)
        found.append(Duty("updates", worker, connect, updates.step, updates.retire, every_s=STEP_S, lease_s=_LEASE_S))
    if current.settings.changes:
        changes = LiveChanges()
        found.append(Duty("changes", worker, connect, changes.step, changes.retire, every_s=STEP_S, lease_s=_LEASE_S))
    wanted = task_events if current.settings.celery_events is None else None
    if current.settings.celery_events or wanted is not None:
        events = CeleryEvents(app, worker)
        found.append(
            Duty(
                "celery-events",
                worker,
                connect,
                events.step,
                events.retire,
                every_s=STEP_S,
                lease_s=_LEASE_S,
                wanted=wanted or (lambda: True),
            )
        )
    return found
