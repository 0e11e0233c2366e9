"""Another system, with a plain Redis client, steers a pool of real workers and follows it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from celery_allocator.ledger import Ledger
from celery_allocator.model import State
from celery_allocator.updates import watch
from tests.support.cluster import NODE, SOON_S, Cluster, worker_spec
from tests.support.mirror import Mirror, truth
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

#: The first two take turns with what is one worker's duty.
WORKERS = (worker_spec("gpu0", "0"), worker_spec("gpu1", "1"))
GPU = {"gpu_memory_mb": 8192, "cpu_cores": 1}

pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Brain:
    """The other system: knows the names of streams and the form of an update, and nothing of the allocator's code."""

    def __init__(self, url: str, pool: str) -> None:
        self.redis = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2 * SOON_S)
        self.updates = f"{{allocator:{pool}}}:updates"
        self.replies = f"{{allocator:{pool}}}:updates:replies"

    def send(self, key: str, kind: str, name: str, op: str = "update", **fields: Any) -> str:
        said = {"object": kind, "id": name, "op": op, "fields": fields, "actor": "brain", "idempotency_key": key}
        sent: Any = self.redis.xadd(self.updates, {"update": json.dumps(said)})
        return str(sent)

    def reply(self, sent: str) -> dict[str, Any]:
        """Wait for the reply to an update."""
        last = "0"
        while True:
            read: Any = self.redis.xread({self.replies: last}, block=int(SOON_S * 1000))
            assert read, f"no reply to {sent}"
            rows = read[0][1] if isinstance(read, list) else read[self.replies][0]
            last = rows[-1][0]
            for _, fields in rows:
                if fields["update"] == sent:
                    return dict(json.loads(fields["reply"]))

    def tell(self, *args: Any, **fields: Any) -> dict[str, Any]:
        return self.reply(self.send(*args, **fields))


@pytest.fixture
def link(cluster_backend: RedisServer) -> Iterator[TcpProxy]:
    """The way of the workers to their ledger."""
    with TcpProxy(("127.0.0.1", cluster_backend.port)) as link:
        yield link


@pytest.fixture
def pool(link: TcpProxy, new_cluster: Callable[..., Cluster]) -> Cluster:
    cluster = new_cluster(ledger_url=f"redis://127.0.0.1:{link.port}/0")
    cluster.start(*WORKERS)
    return cluster


@pytest.fixture
def brain(pool: Cluster) -> Iterator[Brain]:
    brain = Brain(pool.backend.url, pool.pool)
    yield brain
    brain.redis.close()


def on_duty(pool: Cluster) -> str:
    """Name of the worker that takes updates."""
    holder: Any = pool.client.get(f"{{allocator:{pool.pool}}}:duty:updates")
    return str(holder.decode().partition("@")[0]) if holder else ""


def test_it_cordons_holds_and_lets_go_and_a_mirror_follows(pool: Cluster, brain: Brain) -> None:
    mirror = Mirror()
    done = brain.tell("k1", "device", f"{NODE}/gpu_1", state="cordoned")
    assert (done["status"], len(done["entries"])) == ("applied", 1)
    assert pool.device("gpu_1").state == "cordoned"

    key = pool.key()
    first = pool.app.send_task("zoo.hold", (key,), resources=GPU)
    pool.held_in(key)
    second = pool.app.send_task("zoo.where", resources=GPU)
    assert brain.tell("k2", "task", second.id, state="on_hold", priority=3)["status"] == "applied"
    assert pool.only(second.id).state is State.ON_HOLD
    followed = watch(pool.ledger, block_s=0)
    mirror.follow(followed)
    pool.let_go(key)
    assert first.get(timeout=SOON_S) == key
    assert pool.only(second.id).state is State.ON_HOLD  # there is room now
    assert brain.tell("k3", "task", second.id, state="waiting")["status"] == "applied"
    assert second.get(timeout=SOON_S)["allocation"]["device"] == "gpu_0"

    third = pool.app.send_task("zoo.hold", (pool.key(),), resources=GPU, countdown=600)
    assert brain.tell("k4", "task", third.id, "delete")["status"] == "applied"
    pool.until(lambda: third.state == "REVOKED", "the result of what was cancelled")
    assert brain.tell("k4", "task", third.id, "delete")["status"] == "duplicate"
    assert brain.tell("k5", "device", f"{NODE}/gpu_1", state="ready")["status"] == "applied"
    assert brain.tell("k6", "task", third.id, "delete")["code"] == "not_found"
    pool.settle()

    mirror.follow(watch(pool.ledger, followed.position, block_s=0))
    assert mirror.content() == truth(pool.ledger)
    assert {entry.actor for entry in pool.ledger.journal()} == {"brain"}


def test_what_a_killed_worker_had_begun_another_finishes_and_nothing_is_done_twice(
    pool: Cluster, link: TcpProxy, brain: Brain
) -> None:
    direct = Ledger(pool.client, pool.pool)
    pool.app.send_task("zoo.hold", ("never",), resources=GPU)  # what is killed with its worker
    pool.ledger.pause(stop=True)
    count = 500  # as many actions as the journal keeps
    for _ in range(count):
        pool.app.send_task("zoo.cpu_add", (1, 2), resources={**GPU, "tenant": "blue"})
    taker = pool.until(lambda: on_duty(pool), "a worker to take updates")
    process = pool.workers[taker].container.process
    link.latency_s = 0.005  # as it is, all of it takes but a second: too little to strike in, on a busy machine
    sent = brain.send("k1", "tenant", "blue", state="on_hold", priority=9)
    wait_until(lambda: direct.journal(1), SOON_S, "the first action", interval=0)
    os.kill(process.pid, signal.SIGKILL)
    pool.workers[taker].kill()
    link.latency_s = 0.0
    begun = len(direct.journal(1000))
    reply = brain.reply(sent)
    pool.until(lambda: on_duty(pool) not in ("", taker), "another worker on duty")
    assert begun < 2 * count, "it was over before the worker was killed"
    assert (reply["status"], reply["skipped"]) == ("applied", 0)
    assert sorted(reply["entries"]) == sorted(entry.number for entry in pool.ledger.journal(1000))
    assert len(reply["entries"]) == 2 * count
    held = pool.ledger.on_hold(limit=1000)
    assert len(held) == count and {allocation.priority for allocation in held} == {9}
