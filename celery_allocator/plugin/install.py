"""``install(app)``: one call that makes a Celery app allocate. Reads no configuration and connects to nothing."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from celery.bin.base import CeleryOption

from celery_allocator.allocating.session import Session as FunctionSession
from celery_allocator.allocating.session import use_default
from celery_allocator.errors import SettingsError
from celery_allocator.plugin import (
    bootsteps,
    remote,  # noqa: F401  # `celery inspect` and `celery control` know its commands once it is imported
    running,
    starting,
)
from celery_allocator.plugin.duties import DutiesStep
from celery_allocator.plugin.exposing import MetricsStep
from celery_allocator.plugin.recording import RecorderStep
from celery_allocator.plugin.session import session

_AMQP = "celery_allocator.plugin.sender:AllocatorAMQP"
_CONTROL = "celery_allocator.plugin.control:AllocatorControl"
_INSTALLED = "_allocator_installed"
#: Called with every app that begins to allocate.
_LISTENERS: list[Callable[[Celery], None]] = []


def on_install(told: Callable[[Celery], None]) -> Callable[[Celery], None]:
    """Have ``told`` called with every app that begins to allocate in this process."""
    _LISTENERS.append(told)
    return told


def install(app: Celery) -> Celery:
    """Make ``app`` place tasks that declare ``resources`` by the allocator; returns ``app``. May be called again.

    Call it where the app is made, at module level: the option ``--gpu`` has to exist when a worker's command line is
    read. Everything else is set by ``allocator_*`` in ``app.conf`` or by ``ALLOCATOR_*`` in the environment. Raises
    :class:`~celery_allocator.errors.SettingsError` if the app already has an AMQP or control class of its own.
    """
    if is_installed(app):
        return app
    for attribute, ours in (("amqp_cls", _AMQP), ("control_cls", _CONTROL)):
        if getattr(app, attribute) not in (getattr(Celery, attribute), ours):
            raise SettingsError(
                f"this app has {attribute}={getattr(app, attribute)!r}: celery-allocator needs that place. "
                f"Derive your class from {ours.replace(':', '.')} and set it after install()"
            )
        setattr(app, attribute, ours)
    # Properties that were used before are made again with our classes.
    for cached in ("amqp", "control"):
        vars(app).pop(cached, None)
    app.user_options["worker"].add(
        CeleryOption(
            ["--gpu"],
            default=None,
            metavar="INDEX|UUID|none",
            help_group="Allocator Options",
            help="GPU this worker serves, by index or UUID; 'none': CPU-only work. Unset: a plain worker.",
        )
    )
    app.steps["consumer"].add(bootsteps.AllocatorStep)
    app.steps["consumer"].add(DutiesStep)
    app.steps["consumer"].add(RecorderStep)
    app.steps["consumer"].add(MetricsStep)
    running.connect_signals()
    bootsteps.connect_signals()
    starting.connect_signals()
    # allocate_resources() and its kin in this app's processes use this app's ledger.
    use_default(lambda: FunctionSession(session(app).settings, connect_to=lambda: session(app).ledger))
    vars(app)[_INSTALLED] = True
    for told in _LISTENERS:
        told(app)
    return app


def is_installed(app: Celery) -> bool:
    """Whether :func:`install` was called on ``app``."""
    return bool(vars(app).get(_INSTALLED))
