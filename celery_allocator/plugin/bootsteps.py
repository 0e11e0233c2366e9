"""How a worker with ``--gpu`` comes and goes: its device, its queue, its place in the ledger.

``worker_init`` runs before the pool forks: there the device is chosen and made visible, and the queue added. The
consumer step registers once the queue is consumed, and leaves in ``shutdown``, the last hook that always runs with no
task active.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from celery import bootsteps, signals
from celery.app.task import Task
from celery.exceptions import WorkerShutdown
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request
from celery.worker.state import maybe_shutdown
from kombu.entity import Exchange, Queue

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.inventory import discover
from celery_allocator.isolation import device_environment
from celery_allocator.ledger.connection import check_schema, durability_warnings
from celery_allocator.model import CPU_DEVICE, NodeInventory
from celery_allocator.model.tenant import quotas
from celery_allocator.plugin.envelope import own_header
from celery_allocator.plugin.fence import guard
from celery_allocator.plugin.keeper import WorkerKeeper
from celery_allocator.plugin.naming import queue_name
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.request import AllocationHooks, AllocatorRequest
from celery_allocator.plugin.session import Keeper, Session, session
from celery_allocator.plugin.starting import check_main, forks, watch_forks

logger = logging.getLogger(__name__)

_GATE = "celery_allocator.plugin.gate:strategy"
#: Seconds between tries to register while the ledger cannot be reached.
_RETRY_S = 2.0
_EXPLICIT_QUEUES = "_allocator_explicit_queues"


def device_id_of(which: str, inventory: NodeInventory) -> str:
    """The device that ``--gpu`` names: an index, a UUID, a device id, or ``none`` for CPU-only work.

    Raises :class:`LookupError` listing the devices there are.
    """
    if which.strip().lower() in ("none", CPU_DEVICE):
        return CPU_DEVICE
    device = inventory.device(which.strip())
    if device is None:
        known = ", ".join(f"{d.number} ({d.uuid}, {d.memory_mb} MB)" for d in inventory.devices)
        raise LookupError(
            f"--gpu {which}: {inventory.node} has no such GPU. It has: {known or 'none'}. "
            "Use an index, a UUID, or 'none' for CPU-only work; ALLOCATOR_DEVICES=sim:2x24576 simulates two"
        )
    return device.device_id


def on_celeryd_init(sender: Any = None, instance: Any = None, options: Any = None, **_: Any) -> None:
    """Remember whether ``-Q`` was given (signal ``celeryd_init``, the only place that tells)."""
    setattr(instance, _EXPLICIT_QUEUES, bool((options or {}).get("queues")))


def on_worker_init(sender: Any = None, **_: Any) -> None:
    """Choose the device, before the pool forks (signal ``worker_init``). One that does not exist ends the worker."""
    app, which = sender.app, sender.options.get("gpu")
    if which is None:
        return
    current = session(app)
    try:
        settings = current.settings
        inventory = discover(settings)
        device_id = device_id_of(str(which), inventory)
    except (AllocatorError, LookupError) as error:
        raise SystemExit(f"celery-allocator: {error}") from error
    if device_id != CPU_DEVICE and (refusal := check_main(sender, settings.cuda_in_parent)):
        raise SystemExit(f"celery-allocator: {refusal}")
    os.environ.update(device_environment(inventory.device(device_id)))
    name = queue_name(settings.pool, inventory.node, device_id)
    _consume(app, name, only=device_id != CPU_DEVICE and not getattr(sender, _EXPLICIT_QUEUES, False))
    current.keeper = WorkerKeeper(app, sender.hostname, inventory, device_id, name)


def on_celeryd_after_setup(sender: Any = None, instance: Any = None, **_: Any) -> None:
    """Warn a plain worker that knows tasks with resources (signal ``celeryd_after_setup``: logging works by then)."""
    tasks = instance.app.tasks.items()
    names = [name for name, task in tasks if getattr(task, "resources", None) is not None]
    if names and instance.options.get("gpu") is None:
        logger.warning(
            "this worker serves no device, so it runs none of the tasks with resources (%s). "
            "Start workers for those with --gpu INDEX, --gpu none, or 'celery -A … allocator workers'",
            ", ".join(sorted(names)),
        )


def on_worker_shutting_down(sender: Any = None, **_: Any) -> None:
    """Stop taking grants as soon as shutdown begins (signal ``worker_shutting_down``)."""
    for keeper in _keepers:
        keeper.close()


def on_message_refused(sender: Any = None, message: Any = None, **_: Any) -> None:
    """A granted message that this worker cannot run, of an unknown or malformed task, gives its resources back."""
    header = own_header(getattr(message, "headers", None))
    if header.get("token"):
        publish_grants(sender.app, session(sender.app).ledger.release(header["id"], header["token"], "rejected").grants)


def connect_signals() -> None:
    """Connect the handlers, once per process however often it is called."""
    for signal, handler in (
        (signals.celeryd_init, on_celeryd_init),
        (signals.worker_init, on_worker_init),
        (signals.celeryd_after_setup, on_celeryd_after_setup),
        (signals.worker_shutting_down, on_worker_shutting_down),
        (signals.task_unknown, on_message_refused),
        (signals.task_rejected, on_message_refused),
    ):
        signal.connect(handler, weak=False, dispatch_uid=f"celery_allocator.{handler.__name__}")


_keepers: list[Keeper] = []


class AllocatorStep(bootsteps.StartStopStep):
    """Consumer step: the worker's presence in the ledger while it consumes."""

    name = "Allocator"
    requires = (
        "celery.worker.consumer.tasks:Tasks",
        "celery_allocator.plugin.duties:DutiesStep",
        "celery_allocator.plugin.exposing:MetricsStep",
    )

    def __init__(self, parent: Any, gpu: str | None = None, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        keeper = session(parent.app).keeper
        self.enabled = keeper is not None
        if keeper is not None:
            self.keeper = keeper
            _keepers[:] = [keeper]
            _keep_from_rejecting(parent, keeper.queue)
        for task in parent.app.tasks.values():
            adopt(task)

    def include_if(self, parent: Any) -> bool:
        return bool(self.enabled)

    def start(self, parent: Any) -> None:
        """Register; again after a lost connection to the broker."""
        while True:
            try:
                _check_server(session(parent.app))
                self.keeper.register(parent.controller.concurrency, parent.pool)
                self._watch_forks(parent)
            except LedgerUnavailable as error:
                # As Celery does when its broker is down: say so and try again, until told to stop.
                logger.error("%s; trying again in %s s", error, _RETRY_S)  # noqa: TRY400
                maybe_shutdown()
                time.sleep(_RETRY_S)
            except AllocatorError as error:
                logger.critical("%s", error)
                raise WorkerShutdown(1) from error
            else:
                return

    def _watch_forks(self, parent: Any) -> None:
        if self.keeper.info()["device"] != CPU_DEVICE and forks(parent.controller):
            watch_forks(parent.pool, session(parent.app).settings.cuda_in_parent, self.keeper.close)

    def stop(self, parent: Any) -> None:
        """The consumer starts again, or ends: it has dropped what no child had been given. The registration stays."""
        self.keeper.give_back(pool_stopped=False)

    def shutdown(self, parent: Any) -> None:
        """Leave the ledger."""
        self.keeper.leave()

    def info(self, parent: Any) -> dict[str, Any]:
        """What ``celery inspect stats`` and Flower's worker page show."""
        return {"allocator": self.keeper.info()}


def _check_server(current: Session) -> None:
    check_schema(current.ledger)
    current.ledger.try_strategies()
    current.ledger.load_tenants(quotas(current.settings.tenants), publishes=False)
    for warning in durability_warnings(current.ledger):
        logger.warning(warning)
    if current.is_embedded:
        logger.warning(
            "the ledger is this host's embedded server: workers on other hosts cannot share it. "
            "Set allocator_backend_url to a Redis that all of them reach"
        )


def adopt(task: Any) -> None:
    """Put a registered task behind the gate. A user's own request class keeps its behaviour under the hooks."""
    if task.Strategy == Task.Strategy:
        task.Strategy = _GATE
    elif task.Strategy != _GATE:
        logger.warning("task %s has a Strategy of its own: the allocator cannot check its deliveries", task.name)
    guard(task)
    cls = symbol_by_name(task.Request)
    if cls is Request:
        task.Request = AllocatorRequest
    elif not issubclass(cls, AllocationHooks):
        task.Request = type(f"Allocated{cls.__name__}", (AllocationHooks, cls), {})


def _keep_from_rejecting(consumer: Any, queue: str) -> None:
    """What comes from ``queue`` and cannot be run is not rejected at the broker, which has settled it already.

    RabbitMQ would close the channel, and with it stop the consumer.
    """
    for name in ("on_unknown_task", "on_invalid_task"):
        refuse = getattr(consumer, name)

        def refused(body: Any, message: Any, exc: Any, refuse: Any = refuse) -> Any:
            if (message.delivery_info or {}).get("routing_key") == queue:
                message.reject = lambda requeue=False: None
            return refuse(body, message, exc)

        setattr(consumer, name, refused)


def _consume(app: Any, name: str, only: bool) -> None:
    """Consume the device's queue: ``only`` it, or beside those the worker consumes anyway."""
    queues = app.amqp.queues
    before = [] if only else list(queues.consume_from)
    # Reached by the default exchange: nothing but the queue itself has to be declared. The ledger keeps every message
    # until its task ends and has it published again if it does not start, so the broker need not: no acknowledgements.
    queues.add(Queue(name, exchange=Exchange("", type="direct"), routing_key=name, no_ack=True))
    queues.select([*before, name])
