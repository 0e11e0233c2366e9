"""Requirements of any form: valid ones, or our error that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from hypothesis import example, given

from celery_allocator import install
from celery_allocator.errors import AllocatorError, RequirementsError
from celery_allocator.ledger import Ledger
from celery_allocator.model import FIELDS, Requirements
from celery_allocator.plugin.envelope import HEADER
from tests.fuzz.material import FUZZ, needs, objects, state
from tests.support.redis_server import RedisServer


def within_bounds(value: Requirements) -> None:
    for name, field in FIELDS.items():
        assert type(getattr(value, name)) is int
        assert field.minimum <= getattr(value, name) <= field.maximum


@FUZZ
@given(objects | needs, objects | needs)
@example({"ram_mb": 10**400}, None)
@example({"\ud800": 1}, None)
def test_they_are_parsed_or_refused(first: Any, second: Any) -> None:
    """The message is short and can be sent on, whatever the value."""
    try:
        within_bounds(Requirements.parse(first, second))
    except RequirementsError as error:
        refusal = error
    else:
        return
    assert len(str(refusal)) < 600
    json.dumps(refusal.as_dict()).encode()


@pytest.fixture
def app(redis_server: RedisServer, pool: str) -> Celery:
    app = Celery("fuzz", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.update(allocator_backend_url=redis_server.socket_url, allocator_pool=pool, task_publish_retry=False)
    return install(app)


@pytest.fixture
def ledger(redis_server: RedisServer, pool: str) -> Any:
    with redis_server.client() as client:
        yield Ledger(client, pool)


@FUZZ
@given(objects | needs, objects, objects)
def test_a_call_is_routed_or_refused_and_nothing_is_submitted(
    app: Celery, ledger: Ledger, resources: Any, strategy: Any, header: Any
) -> None:
    """``apply_async(resources=…, strategy=…, headers=…)``."""
    options = {"resources": resources, "strategy": strategy, "headers": {HEADER: header}}
    try:
        routed = app.amqp.router.route(options, "work", (), {})
    except AllocatorError:
        pass
    else:
        assert "resources" not in routed or isinstance(routed["resources"], Requirements)
    assert state(ledger) == {}


@FUZZ
@given(objects | needs)
def test_a_decorator_and_a_retried_message_too(app: Celery, ledger: Ledger, resources: Any) -> None:
    """What the task's decorator says, and what the headers of the message before said."""
    task = type("T", (), {"resources": resources})()
    retried = {"headers": {HEADER: {"id": "alloc_1", "resources": resources, "strategy": resources}}}
    attempts: list[Callable[[], Any]] = [
        lambda: app.amqp.router.route({}, "work", (), {}, task),
        lambda: app.amqp.router.route(retried, "work", (), {}),
    ]
    for attempt in attempts:
        try:
            attempt()
        except AllocatorError:
            continue
    assert state(ledger) == {}
