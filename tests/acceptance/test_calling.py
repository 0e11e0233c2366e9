"""The ways to call a task, and what of its call arrives."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery
from celery.app.task import Task
from celery.canvas import StampingVisitor

from celery_allocator import current_allocation, install
from tests.support.allocator_app import make_app
from tests.support.cluster import NODE, SOON_S, Cluster
from tests.support.processes import OwnedProcess
from tests.support.waiting import wait_until


def test_send_task_from_a_producer_without_the_code(cluster: Cluster) -> None:
    """Requirements are the call's; a task's own are known where its code is."""
    stranger = _stranger(cluster)
    need = {"gpu_memory_mb": 2000, "cpu_cores": 2, "ram_mb": 300}
    held = stranger.send_task("zoo.where", resources=need).get(timeout=SOON_S)["allocation"]
    assert held["req"] == {**need, "priority": 0}
    by_name = cluster.app.send_task("zoo.where").get(timeout=SOON_S)["allocation"]
    assert by_name["req"] == {"gpu_memory_mb": 1024, "cpu_cores": 1, "ram_mb": 0, "priority": 0}


def test_requirements_of_decorator_and_call_are_merged(cluster: Cluster) -> None:
    """Key by key; ``delay`` and ``apply_async`` of the task itself."""
    where = cluster.app.tasks["zoo.where"]
    assert where.delay().get(timeout=SOON_S)["allocation"]["req"]["gpu_memory_mb"] == 1024
    held = where.apply_async(resources={"ram_mb": 64, "priority": 3}, strategy="priority").get(timeout=SOON_S)[
        "allocation"
    ]
    assert held["req"] == {"gpu_memory_mb": 1024, "cpu_cores": 1, "ram_mb": 64, "priority": 3}
    assert held["strategy"] == "priority"


def test_requirements_of_a_route(cluster: Cluster) -> None:
    """``task_routes`` may carry resources, also for a task that declares none; the decorator's are merged over."""
    app = cluster.make_app(
        task_routes={"zoo.affinity": {"resources": {"gpu_memory_mb": 512}}, "zoo.wh*": {"resources": {"ram_mb": 10}}}
    )
    held = app.send_task("zoo.affinity").get(timeout=SOON_S)["allocation"]
    assert held["req"]["gpu_memory_mb"] == 512
    assert held["device"].startswith("gpu_")
    assert app.send_task("zoo.where").get(timeout=SOON_S)["allocation"]["req"]["ram_mb"] == 10


def test_default_requirements(cluster: Cluster) -> None:
    """``allocator_default_resources`` makes every task of the user's one with requirements."""
    app = cluster.make_app(allocator_default_resources={"cpu_cores": 2})
    held = app.send_task("zoo.affinity").get(timeout=SOON_S)["allocation"]
    assert (held["device"], held["req"]["cpu_cores"]) == ("cpu", 2)
    assert app.send_task("zoo.where").get(timeout=SOON_S)["allocation"]["req"]["gpu_memory_mb"] == 1024


def test_ignore_result(cluster: Cluster) -> None:
    """It runs; nothing is stored."""
    key = cluster.key()
    result = cluster.app.send_task("zoo.silent", (key,))
    cluster.app.send_task("zoo.count", (key,), ignore_result=True)
    cluster.until(lambda: cluster.counter(key) == 2, "both runs")
    cluster.settle()
    assert not cluster.client.exists(f"celery-task-meta-{result.id}")


def test_stamps_arrive(cluster: Cluster) -> None:
    """Stamped headers pass through the ledger."""

    class Visitor(StampingVisitor):  # type: ignore[misc]
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"customer": "c-17", "stamped_headers": ["customer"]}

    signature = cluster.app.signature("zoo.stamps")
    signature.stamp(Visitor())
    with cluster.full():
        result = signature.apply_async()
        assert cluster.only(result.id).queue_position == 1
    assert result.get(timeout=SOON_S) == {"customer": "c-17"}


def test_headers_priority_and_compression_arrive(cluster: Cluster) -> None:
    """What a call says to the broker and the worker is kept while the task waits."""
    with cluster.full():
        result = cluster.app.send_task("zoo.add", (1, 2), compression="gzip", headers={"trace": "t1"}, priority=3)
    assert result.get(timeout=SOON_S) == 3


def test_always_eager_needs_no_ledger() -> None:
    """As with plain Celery the task runs here and now; there is no allocation."""
    nowhere = "redis://127.0.0.1:1/0"
    app = make_app(
        task_always_eager=True, broker_url=nowhere, allocator_backend_url=nowhere, result_backend="cache+memory://"
    )
    assert app.tasks["zoo.add"].delay(1, 2).get() == 3
    assert app.tasks["zoo.where"].apply_async(resources={"ram_mb": 1}).get()["allocation"] is None
    assert current_allocation() is None


def test_a_base_class_of_the_users(cluster: Cluster) -> None:
    """Its hooks and its request class work on, under the allocator's."""
    result = cluster.app.send_task("zoo.own")
    assert result.get(timeout=SOON_S)["allocation"]["device"].startswith("gpu_")
    cluster.until(lambda: cluster.client.llen(f"own:{result.id}") == 2, "the hooks")
    assert cluster.client.lrange(f"own:{result.id}", 0, -1) == [b"before_start", b"on_success"]
    late = cluster.app.send_task("zoo.own_sleep", (60,), time_limit=1)
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        late.get(timeout=SOON_S)
    noted = [b"before_start", b"timeout soft=False"]
    cluster.until(lambda: cluster.client.lrange(f"own:{late.id}", 0, -1) == noted, "the request's own hook")


def test_beat(cluster: Cluster, tmp_path: Path) -> None:
    """A schedule's task is placed like any other."""
    key = cluster.key()
    schedule = {"often": {"task": "zoo.count", "schedule": 0.2, "args": [key]}}
    env = cluster.environment({"ZOO_CONFIG": json.dumps({**cluster.config, "beat_schedule": schedule})})
    command = ["-m", "celery", "-A", "tests.support.allocator_app", "beat", "-s", str(tmp_path / "schedule")]
    with OwnedProcess([sys.executable, *command], tmp_path / "beat.log", env=env) as beat:
        wait_until(lambda: cluster.counter(key) >= 3, SOON_S, lambda: beat.output()[-3000:])
    started = [e for _, e in cluster.ledger.events(count=100_000) if e["event"] == "started"]
    assert any(e["device"].startswith(f"{NODE}/gpu_") and e["name"] == "zoo.count" for e in started)


def test_a_task_sent_from_inside_a_task(cluster: Cluster) -> None:
    """By a child, whose ledger client is its own."""
    inner = cluster.app.send_task("zoo.send", ("zoo.where", [])).get(timeout=SOON_S)
    assert cluster.app.AsyncResult(inner).get(timeout=SOON_S)["allocation"]["device"].startswith("gpu_")


def test_a_task_sees_its_cores_and_its_device(cluster: Cluster) -> None:
    """Pinned to the granted cores that exist here, and free again afterwards; a simulated device shows no GPU."""
    everything = sorted(os.sched_getaffinity(0))
    for name, device in (("zoo.where", "gpu_"), ("zoo.cpu_where", "cpu")):
        for wanted in (1, 2):
            saw = cluster.app.send_task(name, resources={"cpu_cores": wanted}).get(timeout=SOON_S)
            granted = saw["allocation"]["cores"]
            assert len(granted) == wanted
            assert saw["allocation"]["device"].startswith(device)
            assert saw["affinity"] == (sorted({*granted} & {*everything}) or everything)
            assert saw["device"] == ""
    # Plain tasks in the same processes: nothing of the pinning is left.
    after = [cluster.app.send_task("zoo.affinity") for _ in range(8)]
    assert {tuple(each.get(timeout=SOON_S)["affinity"]) for each in after} == {tuple(everything)}


# --- tasks without requirements


def test_plain_tasks_are_untouched_byte_for_byte(cluster: Cluster) -> None:
    """The same message as of an app without the plugin, and no trace in the ledger."""
    before = len(cluster.ledger.events(count=100_000))
    calls: tuple[dict[str, Any], ...] = (
        {},
        {"countdown": 60, "expires": 90},
        {"priority": 3, "headers": {"x": 1}, "compression": "gzip"},
    )
    sent = []
    for app in (cluster.make_app(plain=True), cluster.make_app()):
        queue = f"plain-{cluster.key()}"
        for options in calls:
            app.send_task("zoo.plain", ("é",), {}, queue=queue, task_id="an-id", origin="o", retry=False, **options)
        with kombu.Connection(cluster.broker_url) as connection, connection.SimpleQueue(queue) as box:
            messages = [box.get(timeout=SOON_S) for _ in calls]
            for message in messages:
                message.ack()
        sent.append([_comparable(message, queue) for message in messages])
    assert sent[0] == sent[1]
    assert len(cluster.ledger.events(count=100_000)) == before


def test_plain_tasks_run_beside_the_others(cluster: Cluster) -> None:
    """The CPU worker serves the default queue; GPU workers do not."""
    with cluster.full():
        assert cluster.app.send_task("zoo.plain", (5,)).get(timeout=SOON_S) == 5
        assert cluster.app.send_task("zoo.affinity").get(timeout=SOON_S)["allocation"] is None


def test_an_embedding_app_of_the_users_own_class(new_cluster: Callable[..., Cluster]) -> None:
    """``install`` on a subclass of Celery whose tasks have a base class of the app's."""

    class Base(Task):  # type: ignore[misc]
        abstract = True

    class Own(Celery):  # type: ignore[misc]
        task_cls = Base

    cluster = new_cluster()
    app = Own("own", broker=cluster.broker_url, set_as_current=False)
    app.conf.update(allocator_backend_url=cluster.backend.url, allocator_pool=cluster.pool)
    install(app)
    result = app.send_task("anything", resources={"cpu_cores": 1})
    assert cluster.only(result.id).queue_position == 1
    app.control.revoke(result.id)
    assert cluster.idle()
    app.close()


def _stranger(cluster: Cluster) -> Celery:
    """A producer that knows no task."""
    app = Celery("stranger", set_as_current=False)
    app.conf.update(
        broker_url=cluster.broker_url,
        result_backend=cluster.backend.url,
        allocator_backend_url=cluster.backend.url,
        allocator_pool=cluster.pool,
    )
    return install(app)


def _comparable(message: Any, queue: str) -> dict[str, Any]:
    """Everything of a message but what differs from call to call (and with the queue's name)."""
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    varies = ("delivery_tag", "delivery_info", "reply_to", "application_headers", "consumer_tag", "redelivered")
    return {
        "body": base64.b64encode(body),
        "type": (message.content_type, message.content_encoding),
        "headers": {key: bool(value) if key in ("eta", "expires") else value for key, value in message.headers.items()},
        "properties": {key: value for key, value in message.properties.items() if key not in varies},
        "delivery": {
            key: value.replace(queue, "") if isinstance(value, str) else value
            for key, value in message.delivery_info.items()
            if key not in varies
        },
    }
