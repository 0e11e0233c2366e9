"""`celery inspect` and `celery control` on real workers, over Redis and RabbitMQ."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_allocator.ledger import keys
from celery_allocator.model import State
from celery_allocator.plugin.control import AllocatorControl
from tests.support.cluster import MODULE, NODE, SOON_S, Cluster, current, worker_spec
from tests.support.process_nodes import WorkerSpec
from tests.support.processes import ROOT
from tests.support.redis_server import RedisServer

#: Where the kind of broker makes no difference.
ON_REDIS = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
#: One of each pool that Celery's event loop treats in its own way.
WORKERS = (
    worker_spec("gpu0", "0", env={"ALLOCATOR_MEASURE_S": "0.2"}),
    worker_spec("solo", "1", "--pool", "solo", "--concurrency", "1"),
    worker_spec("cpu", "none", "-P", "threads"),
)


def celery(cluster: Cluster, *args: str, code: int = 0) -> str:
    """``celery -A proj …``: what it says."""
    argv = [sys.executable, "-m", "celery", "-A", MODULE, *args]
    done = subprocess.run(
        argv, env=cluster.environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def ask(cluster: Cluster, kind: str, *args: str, of: Sequence[str] = ("gpu0", "solo", "cpu")) -> dict[str, Any]:
    """``celery -A proj inspect|control … --json``: the answers by worker, which are waited for."""
    hosts = {cluster.workers[name].hostname(): name for name in of}
    # Celery stops waiting when all that were named have answered.
    found = json.loads(celery(cluster, kind, *args, "--json", "--timeout", "20", "--destination", ",".join(hosts)))
    rows = found.items() if isinstance(found, dict) else [row for one in found for row in one.items()]
    return {hosts[host]: reply for host, reply in rows}


@pytest.fixture(scope="module")
def workers(
    broker_url: str, cluster_backend: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    shared = Cluster(broker_url, cluster_backend, tmp_path_factory.mktemp("remote"))
    try:
        shared.start(*WORKERS)
        shared.until_they_listen()
        yield shared
    finally:
        shared.close()


@pytest.fixture
def pool(workers: Cluster) -> Iterator[Cluster]:
    """The three workers, as if nobody had acted yet."""
    with current(workers):
        yield workers
        workers.ledger.uncordon(NODE)
        workers.ledger.pause(stop=False)
        workers.settle()
        workers.client.delete(keys.key(workers.pool, "journal"))


def test_every_worker_tells_of_itself(pool: Cluster) -> None:
    on_gpu, on_cpu = pool.key(), pool.key()
    pool.ledger.cordon(f"{NODE}/gpu_1")  # a solo worker hears nothing while it runs a task
    first = pool.app.send_task("zoo.hold", (on_gpu,), resources={"gpu_memory_mb": 4096, "cpu_cores": 2})
    second = pool.app.send_task("zoo.hold", (on_cpu,), resources={"gpu_memory_mb": 0, "priority": 3})
    pids = [pool.held_in(on_gpu), pool.held_in(on_cpu)]
    seen = ask(pool, "inspect", "allocator")
    assert set(seen) == {"gpu0", "solo", "cpu"} and seen["solo"]["holds"] == []
    for worker, task, pid, memory, priority in (
        ("gpu0", first, pids[0], 4096, 0),
        ("cpu", second, pids[1], 0, 3),
    ):
        (mine,) = seen[worker]["holds"]
        assert (mine["task_id"], mine["name"], mine["pid"]) == (task.id, "zoo.hold", pid)
        assert (mine["gpu_memory_mb"], mine["priority"]) == (memory, priority)
        assert mine["cpu_cores"] == list(pool.only(task.id).cpu_cores) and mine["age_s"] > 0
    pool.let_go(on_gpu, on_cpu)
    assert (first.get(timeout=SOON_S), second.get(timeout=SOON_S)) == (on_gpu, on_cpu)
    pool.settle()
    told = ask(pool, "inspect", "allocator")["solo"]
    assert (told["node"], told["device"], told["uuid"]) == (NODE, "gpu_1", pool.device("gpu_1").uuid)
    assert told["queue"] == pool.device("gpu_1").queue and told["slots"] == pool.device("gpu_1").slots
    assert told["serves"] and told["holds"] == [] and told["complaint"] == "" and not told["closing"]
    assert 0 < told["lease_left_s"] <= 15 and told["lease_losses"] == 0
    assert told["ledger"] == pool.ledger.url and told["pool"] == pool.pool and told["version"]


@ON_REDIS
def test_duties_and_measured_use_are_told(pool: Cluster) -> None:
    seen = pool.until(
        lambda: (found := ask(pool, "inspect", "allocator")) and any(one["duties"] for one in found.values()) and found,
        "a worker to have a duty",
    )
    assert [name for one in seen.values() for name in one["duties"]] == ["updates"]
    # Task events are off: nobody sends the ledger's as Celery events.
    assert all("celery-events" in one["stands_by_for"] for one in seen.values())
    use = pool.until(lambda: ask(pool, "inspect", "allocator", of=("gpu0",))["gpu0"]["use"], "a measurement")
    assert use["ram_ours_mb"] > 0 and "gpu_memory_used_mb" not in use  # a simulated GPU has no driver


@ON_REDIS
def test_a_device_is_closed_and_opened_by_its_worker(pool: Cluster) -> None:
    (reply,) = ask(pool, "control", "allocator_cordon", "a new driver", of=["solo"]).values()
    assert "gpu_1 is cordoned" in reply["ok"]
    assert [pool.device(name).state for name in ("gpu_0", "gpu_1", "cpu")] == ["ready", "cordoned", "ready"]
    (entry,) = pool.ledger.journal()
    assert (entry.action, entry.source, entry.reason) == ("cordon", "control", "a new driver")
    assert re.fullmatch(r"\S+@\S+", entry.actor)
    assert len(ask(pool, "control", "allocator_drain")) == 3
    assert {device.state for device in pool.ledger.snapshot().devices} == {"draining"}
    replies = ask(pool, "control", "allocator_uncordon")
    assert len(replies) == 3 and all("is ready" in reply["ok"] for reply in replies.values())
    assert {device.state for device in pool.ledger.snapshot().devices} == {"ready"}
    assert len(pool.ledger.journal()) == 7


def test_the_pool_is_paused_once_however_many_workers_are_asked(pool: Cluster) -> None:
    hosts = [worker.hostname() for worker in pool.workers.values()]  # others' workers may be on this broker
    replies = pool.app.control.broadcast(
        "allocator_pause", {"reason": "backup"}, reply=True, timeout=20, limit=3, destination=hosts
    )
    texts = [reply["ok"] for one in replies for reply in one.values()]
    assert sorted(text.startswith("the pool is paused") for text in texts) == [False, False, True]
    (entry,) = pool.ledger.journal()
    assert all(f"entry {entry.number} of the journal" in text for text in texts)
    assert pool.ledger.snapshot().paused == "stopped" and entry.reason == "backup"
    ask(pool, "control", "allocator_resume")
    assert pool.ledger.snapshot().paused == "" and len(pool.ledger.journal()) == 2


@ON_REDIS
def test_what_waits_is_held_and_moved(pool: Cluster) -> None:
    ask(pool, "control", "allocator_pause")
    task = pool.app.send_task("zoo.add", (1, 2))
    waiting = pool.only(task.id)
    replies = ask(pool, "control", "allocator_hold", task.id)
    assert len([reply for reply in replies.values() if "is on hold" in reply["ok"]]) == 1
    assert pool.only(task.id).state is State.ON_HOLD
    ask(pool, "control", "allocator_priority", waiting.allocation_id, "7", "it is urgent")
    assert pool.only(task.id).priority == 7
    replies = ask(pool, "control", "allocator_front", waiting.allocation_id)
    assert len([reply for reply in replies.values() if "its place in line" in reply["ok"]]) == 1
    told = [(one.action, one.reason) for one in pool.ledger.journal()]
    assert told == [("front", ""), ("priority", "it is urgent"), ("hold", ""), ("pause", "")]
    ask(pool, "control", "allocator_resume")
    assert pool.only(task.id).state is State.ON_HOLD
    ask(pool, "control", "allocator_unhold", task.id)
    assert task.get(timeout=SOON_S) == 3

    ask(pool, "control", "allocator_pause")
    task = pool.app.send_task("zoo.add", (1, 2))
    ask(pool, "control", "revoke", task.id)
    assert pool.ledger.find(task.id) == () and task.state == "REVOKED"

    missing = f"task-{uuid.uuid4().hex}"
    replies = ask(pool, "control", "allocator_hold", missing)
    assert all(missing in reply["error"] for reply in replies.values()) and len(pool.ledger.journal()) == 7


@ON_REDIS
def test_a_worker_without_a_device_says_so(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster()
    cluster.start(WorkerSpec(module=MODULE, name="plain", args=("--concurrency", "1")))
    cluster.until_they_listen()
    told = ask(cluster, "inspect", "allocator", of=["plain"])["plain"]
    assert told["serves"] is False and told["pool"] == cluster.pool and "node" not in told
    reply = ask(cluster, "control", "allocator_cordon", of=["plain"])["plain"]
    assert "serves no device" in reply["error"] and cluster.ledger.journal() == ()
    assert "is paused" in ask(cluster, "control", "allocator_pause", of=["plain"])["plain"]["ok"]


def test_a_caller_without_the_plugin_is_heard_too(pool: Cluster) -> None:
    plain = Celery("plain", broker=pool.broker_url, set_as_current=False)
    assert not isinstance(plain.control, AllocatorControl)
    host = pool.workers["gpu0"].hostname()
    (reply,) = plain.control.broadcast("allocator_cordon", destination=[host], reply=True, timeout=20)
    plain.close()
    assert "is cordoned" in reply[host]["ok"]
    assert [(entry.actor, entry.source) for entry in pool.ledger.journal()] == [("remote control", "control")]


@ON_REDIS
def test_commands_are_listed_with_what_they_take(pool: Cluster) -> None:
    assert re.search(r"allocator +What a worker says of its device", celery(pool, "inspect", "--list"))
    listed = " ".join(celery(pool, "control", "--list").split())
    assert "allocator_cordon [reason] Grant nothing new on this worker's device" in listed
    assert "allocator_priority <task or allocation id> <priority> [reason]" in listed


@ON_REDIS
def test_a_ledger_that_hangs_does_not_hold_the_worker_up(broker_url: str, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "ledger").start()
    backend = RedisServer(tmp_path / "backend").start()
    # A lease that outlives the outage by far.
    cluster = Cluster(
        broker_url, backend, tmp_path / "workers", ledger_url=server.url, config={"allocator_lease_s": 300.0}
    )
    try:
        cluster.start(worker_spec("gpu0", "0"))
        (host,) = [worker.hostname() for worker in cluster.workers.values()]

        def tell(command: str) -> dict[str, Any]:
            (reply,) = cluster.app.control.broadcast(command, destination=[host], reply=True, timeout=20)
            return dict(reply[host])

        cluster.until_they_listen()
        assert "is cordoned" in tell("allocator_cordon")["ok"]
        server.process.send(signal.SIGSTOP)
        try:
            first, second = tell("allocator_uncordon")["error"], tell("allocator_uncordon")["error"]
            assert "it may still be done" in first or "the ledger is away" in first
            assert "not carried out" in second or "the ledger is away" in second
            assert tell("allocator")["device"] == "gpu_0"
            assert cluster.app.control.ping(destination=[host], timeout=20) == [{host: {"ok": "pong"}}]
        finally:
            server.process.send(signal.SIGCONT)
        cluster.until(lambda: tell("allocator")["outage"] is False, "the ledger to be back")
        cluster.until(lambda: "ok" in tell("allocator_uncordon"), "an answer of the ledger")
        assert cluster.device("gpu_0").state == "ready"
    finally:
        cluster.close()
        server.kill()
        backend.kill()
