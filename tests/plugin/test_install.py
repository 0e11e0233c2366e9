"""``install`` and ``adopt``: what they change of an app and its tasks, and what not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.amqp import AMQP
from celery.worker.request import Request

from celery_allocator import install
from celery_allocator.errors import SettingsError
from celery_allocator.plugin.bootsteps import AllocatorStep, adopt
from celery_allocator.plugin.control import AllocatorControl
from celery_allocator.plugin.request import AllocationHooks, AllocatorRequest
from celery_allocator.plugin.sender import AllocatorAMQP


def test_it_may_be_called_again() -> None:
    """One option, one step, one handler per signal, however often and for how many apps."""
    app = Celery("test", set_as_current=False)
    assert install(app) is app
    receivers = len(signals.task_postrun.receivers)
    install(app)
    install(Celery("other", set_as_current=False))
    assert [str(option.opts) for option in app.user_options["worker"]] == ["['--gpu']"]
    assert [step for step in app.steps["consumer"] if step is AllocatorStep] == [AllocatorStep]
    assert len(signals.task_postrun.receivers) == receivers


def test_it_reads_no_configuration() -> None:
    """It stands at module level, where settings may still come."""
    app = install(Celery("test", set_as_current=False))
    assert not app.configured
    app.conf.allocator_pool = "late"
    assert app.conf.allocator_pool == "late"


def test_it_replaces_what_was_used_before() -> None:
    """An app that has made its AMQP and its control already."""
    app = Celery("test", set_as_current=False, broker="memory://")
    assert type(app.amqp) is AMQP
    assert app.control is not None
    install(app)
    assert type(app.amqp) is AllocatorAMQP
    assert type(app.control) is AllocatorControl


@pytest.mark.parametrize("attribute", ["amqp_cls", "control_cls"])
def test_it_does_not_take_the_place_of_a_class_of_the_users(attribute: str) -> None:
    """It says what to derive from."""

    class Own(Celery):
        pass

    setattr(Own, attribute, "somebody.elses:Class")
    with pytest.raises(SettingsError, match=f"{attribute}='somebody.elses:Class'.*Derive your class from"):
        install(Own("test", set_as_current=False))


def test_adopt_puts_the_hooks_over_any_request(
    make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    """Celery's request, a user's, and one that is adopted already; a strategy of the user's is left, with a warning."""

    class OwnRequest(Request):
        pass

    app = make_app()

    @app.task(name="plain", shared=False)
    def plain() -> None: ...

    @app.task(name="own", shared=False, Request=OwnRequest)
    def own() -> None: ...

    @app.task(name="odd", shared=False, Strategy="somebody.elses:strategy")
    def odd() -> None: ...

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for name in ("plain", "own", "odd"):
                adopt(app.tasks[name])
    tasks: dict[str, Any] = {name: app.tasks[name] for name in ("plain", "own", "odd")}
    assert tasks["plain"].Request is AllocatorRequest
    assert issubclass(tasks["own"].Request, OwnRequest)
    assert tasks["own"].Request.__mro__.count(AllocationHooks) == 1
    assert tasks["plain"].Strategy == tasks["own"].Strategy == "celery_allocator.plugin.gate:strategy"
    assert tasks["odd"].Strategy == "somebody.elses:strategy"
    assert "task odd has a Strategy of its own" in caplog.text
