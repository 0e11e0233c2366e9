"""What Celery drops without a word: back into line if no child had begun it; else it is lost, as its child is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from celery import Celery

from celery_allocator import install
from celery_allocator.model import DeviceInventory, NodeInventory
from celery_allocator.plugin.keeper import WorkerKeeper
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


class Request:
    """Nothing but something to be dropped."""


@pytest.fixture
def keeper(redis_server: RedisServer, pool: str) -> Iterator[WorkerKeeper]:
    app = Celery("dropped", broker=redis_server.url, set_as_current=False)
    app.conf.update(allocator_backend_url=redis_server.url, allocator_pool=pool)
    inventory = NodeInventory("n1", (0,), 1024, (DeviceInventory("gpu_0", 0, "GPU-1", "simulated", 1024),))
    made = WorkerKeeper(install(app), "w", inventory, "gpu_0", "q")
    # What is granted again stays so: its made-up message would be parked, sooner or later, by the courier's thread.
    made._messages.hand_over = lambda grants: None
    yield made
    made._ledger.client.close()
    app.close()


@pytest.mark.parametrize(
    ("begun", "repeatable", "events"),
    [
        (False, False, ["requeued", "granted"]),
        (True, True, ["lost", "granted"]),
        (True, False, ["lost"]),
    ],
)
def test_what_is_dropped(
    keeper: WorkerKeeper, redis_server: RedisServer, pool: str, begun: bool, repeatable: bool,
    events: list[str],
) -> None:  # fmt: skip
    with redis_server.client() as client:
        cluster = LedgerPool(client, pool)
        cluster.node()
        allocation = cluster.running(1000, 1, id="a", repeatable=repeatable)
        seen = len(cluster.happened())
        request = Request()
        keeper.holds(allocation, request)
        if begun:
            child = subprocess.Popen([sys.executable, "-c", ""])
            keeper.begun(allocation, child.pid)
            child.wait()
        keeper._take_back_dropped()
        assert allocation not in keeper._endings
        del request
        keeper._take_back_dropped()
        assert allocation in keeper._endings
        keeper._settle_endings()
        assert cluster.happened()[seen:] == events
        assert [o.outcome for o in cluster.ledger.tick().obituaries] == (["lost"] if events == ["lost"] else [])
