"""Apps whose broker is in memory and whose ledger is the session's Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_allocator import install
from celery_allocator.ledger import Ledger
from celery_allocator.model import DeviceInventory, NodeInventory
from tests.support.redis_server import RedisServer

QUEUE = "allocator.test.host1.gpu_0"


@pytest.fixture
def ledger(redis_server: RedisServer, pool: str) -> Iterator[Ledger]:
    """The pool of the apps of this test."""
    with redis_server.client() as client:
        yield Ledger(client, pool)


@pytest.fixture
def make_app(redis_server: RedisServer, pool: str) -> Iterator[Callable[..., Celery]]:
    """An installed app: ``make_app(setting=…)``."""
    made: list[Celery] = []

    def make(**config: Any) -> Celery:
        app = Celery("test", set_as_current=False)
        defaults = {
            "broker_url": "memory://",
            "result_backend": "cache+memory://",
            "allocator_backend_url": redis_server.socket_url,
            "allocator_pool": pool,
            "task_publish_retry": False,
        }
        app.conf.update({**defaults, **config})
        made.append(install(app))
        return app

    yield make
    for app in made:
        session = vars(app).get("_allocator_session")
        if session is not None and session._ledger is not None:
            session._ledger.client.close()
        app.close()


@pytest.fixture
def node(ledger: Ledger) -> NodeInventory:
    """A host with one GPU of 8192 MB and 4 cores, whose worker has two slots."""
    inventory = NodeInventory("host1", (0, 1, 2, 3), 4096, (DeviceInventory("gpu_0", 0, "GPU-0", "Test", 8192),))
    ledger.register_node(inventory, 60)
    ledger.register_worker("w@host1", "inc", "host1", "gpu_0", slots=2, queue=QUEUE, lease_s=60)
    return inventory
