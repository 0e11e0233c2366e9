"""Placements as Celery events, heard by Celery's own receiver, from real workers over Redis and RabbitMQ."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State

from celery_allocator.ledger import keys
from tests.support.cluster import MODULE, NODE, SOON_S, Cluster, worker_spec
from tests.support.processes import OwnedProcess
from tests.support.waiting import wait_until

#: Without heartbeats nothing but what is tested comes by; the second one's task events are off.
QUIET = ("--concurrency", "2", "--without-gossip")
WORKERS = (worker_spec("gpu0", "0", "-E", *QUIET), worker_spec("gpu1", "1", *QUIET))
GPU = {"gpu_memory_mb": 1024, "cpu_cores": 1}


class Monitor:
    """Any monitor: receives every event, and feeds Celery's own model of the cluster with them."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self.state: State = app.events.State()
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self._heard})
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        # It hears the workers' heartbeats: so it hears all that comes from now on.
        wait_until(lambda: self.of("worker-heartbeat"), SOON_S, "a heartbeat to be heard")
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.should_stop = True  # looked at every second
        self._thread.join(SOON_S)
        self._connection.release()

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"] in types]

    def ours(self, task: str = "") -> list[dict[str, Any]]:
        found = [event for event in list(self.events) if event["type"].startswith("allocator-")]
        return [event for event in found if not task or event.get("uuid") == task]

    def _run(self) -> None:
        for _ in self._receiver.consume(limit=None, wakeup=False):
            pass

    def _heard(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.state.event(event)


@pytest.fixture
def pool(new_cluster: Callable[..., Cluster]) -> Cluster:
    cluster = new_cluster()
    cluster.start(*WORKERS)
    cluster.until_they_listen()

    def groups() -> list[bytes]:
        return [group["name"] for group in cluster.client.xinfo_groups(keys.key(cluster.pool, "events"))]

    cluster.until(lambda: b"celery-events" in groups(), "a worker to follow the stream")
    return cluster


def duty(pool: Cluster) -> bytes:
    return pool.client.get(keys.key(pool.pool, "duty", "celery-events")) or b""


def test_every_placement_is_heard_once_and_in_order(pool: Cluster) -> None:
    assert duty(pool).startswith(b"gpu0@")  # the one whose task events are on
    count = 30
    with Monitor(pool.app) as monitor:
        tasks = [pool.app.send_task("zoo.add", (n, n), resources=GPU) for n in range(count)]
        assert [task.get(timeout=SOON_S) for task in tasks] == [2 * n for n in range(count)]
        pool.settle()
        pool.until(lambda: len(monitor.of("allocator-released")) >= count, "the last release to be heard")
    for task in tasks:
        heard = [event["type"].removeprefix("allocator-") for event in monitor.ours(task.id)]
        assert heard[-3:] == ["granted", "started", "released"]
        assert heard[:-3] in ([], ["waiting"], ["waiting", "reserved"])  # the first in line may be kept something
    positions = [tuple(map(int, event["position"].split("-"))) for event in monitor.ours()]
    assert positions == sorted(set(positions))
    granted = monitor.of("allocator-granted")
    assert len(granted) == count and {event["name"] for event in granted} == {"zoo.add"}
    for event in granted:
        assert (event["node"], event["gpu_memory_mb"], event["cpu_cores"]) == (NODE, 1024, 1)
        assert event["queue"] == f"allocator.{pool.pool}.{NODE}.{event['device']}"
    stream = dict(pool.ledger.events())
    for event in monitor.ours():
        assert event["timestamp"] == pytest.approx(float(stream[event["position"]]["at"]) / 1000)
    assert {event["outcome"] for event in monitor.of("allocator-released")} == {"success"}
    # Celery's own model of tasks knows nothing of them: states are those that its own events say.
    assert {task.state for _, task in monitor.state.itertasks()} <= {"SUCCESS", "STARTED", "RECEIVED"}
    assert all(not hasattr(task, "position") for _, task in monitor.state.itertasks())


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_what_an_operator_does_is_heard_and_events_are_switched_on_and_off(pool: Cluster) -> None:
    host = {name: pool.workers[name].hostname() for name in ("gpu0", "gpu1")}
    with Monitor(pool.app) as monitor:
        pool.ledger.cordon(f"{NODE}/gpu_1")
        (event,) = pool.until(lambda: monitor.of("allocator-cordoned"), "the cordon to be heard")
        assert (event["object"], event["node"], event["device"]) == ("device", NODE, "gpu_1")
        assert event["hostname"] == host["gpu0"]
        pool.app.control.enable_events(destination=[host["gpu1"]], reply=True, timeout=20)
        pool.workers["gpu0"].kill()
        pool.until(lambda: duty(pool).startswith(b"gpu1@"), "the other one to take over")
        pool.ledger.uncordon(f"{NODE}/gpu_1")
        (event,) = pool.until(lambda: monitor.of("allocator-uncordoned"), "what came after the takeover")
        assert event["hostname"] == host["gpu1"]
        assert len(monitor.of("allocator-cordoned")) == 1
        pool.app.control.disable_events(destination=[host["gpu1"]], reply=True, timeout=20)
        pool.until(lambda: not duty(pool), "the duty to be left")


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_celery_events_dump_shows_them(pool: Cluster, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "celery", "-A", MODULE, "events", "--dump"]
    with OwnedProcess(argv, tmp_path / "dump", env=pool.environment()) as dump:
        dump.wait_for_output("heartbeat", SOON_S)
        task = pool.app.send_task("zoo.add", (1, 2), resources=GPU)
        assert task.get(timeout=SOON_S) == 3
        dump.wait_for_output("allocator released", SOON_S)
        (line,) = [line for line in dump.output().splitlines() if "allocator granted" in line]
        assert f"uuid={task.id}" in line and f"node={NODE}" in line and "Traceback" not in dump.output()
