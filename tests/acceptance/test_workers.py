"""Workers come, go, die and get in each other's way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from billiard.exceptions import WorkerLostError

from celery_allocator.model import State
from tests.support.cluster import HOST, MODULE, NODE, SOON_S, Cluster, worker_spec
from tests.support.fake_nvml import FakeGpu, FakeNvml, fake_nvml, nvml_library  # noqa: F401  # fixtures
from tests.support.process_nodes import WorkerSpec
from tests.support.processes import OwnedProcess

#: A lease that a test can wait for.
SHORT = {"ALLOCATOR_LEASE_S": "3"}


def one_slot(name: str, gpu: str, *args: str, env: dict[str, str] | None = None) -> WorkerSpec:
    """A worker with one slot."""
    return worker_spec(name, gpu, "--concurrency", "1", *args, env=env)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., OwnedProcess]]:
    """Run a worker's command line that is expected to end: ``process(cluster, "--gpu", "7")``."""
    started: list[OwnedProcess] = []

    def run(cluster: Cluster, *args: str, env: dict[str, str] | None = None) -> OwnedProcess:
        command = [sys.executable, "-m", "celery", "-A", MODULE, "worker", "-l", "INFO", "-c", "1", *args]
        started.append(
            OwnedProcess(command, tmp_path / f"process{len(started)}.log", env=cluster.environment(env)).start()
        )
        return started[-1]

    yield run
    for each in started:
        each.kill()


# --- which device


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_gpu_that_does_not_exist(new_cluster: Callable[..., Cluster], process: Callable[..., OwnedProcess]) -> None:
    """The worker ends at once and says which there are, and how to try without."""
    cluster = new_cluster()
    absent = process(cluster, "--gpu", "7")
    none = process(cluster, "--gpu", "0", env={"ALLOCATOR_DEVICES": "none"})
    assert absent.wait(SOON_S) == 1
    assert "--gpu 7: host1 has no such GPU. It has: 0 (GPU-sim-host1-0, 8192 MB), 1 (" in absent.output()
    assert "Traceback" not in absent.output()
    assert none.wait(SOON_S) == 1
    assert "It has: none." in none.output()
    assert "ALLOCATOR_DEVICES=sim:2x24576" in none.output()
    assert cluster.ledger.snapshot().nodes == ()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_gpu_by_uuid_and_a_cpu_worker_by_environment(new_cluster: Callable[..., Cluster]) -> None:
    """``--gpu`` takes what ``nvidia-smi -L`` shows, and ``CELERY_WORKER_GPU`` stands for the option."""
    cluster = new_cluster()
    cluster.start(
        one_slot("by-uuid", "GPU-sim-host1-1"),
        WorkerSpec(MODULE, name="by-environment", args=("--concurrency", "1"), env={"CELERY_WORKER_GPU": "none"}),
    )
    workers = {w.worker.split("@")[0]: w.device_id for w in cluster.ledger.snapshot().workers}
    assert workers == {"by-uuid": "gpu_1", "by-environment": "cpu"}
    names = [w.worker for w in cluster.ledger.snapshot().workers]
    cluster.until_they_listen()
    stats = cluster.app.control.inspect(destination=names, timeout=SOON_S).stats()
    queue = f"allocator.{cluster.pool}.{NODE}"
    assert {name.split("@")[0]: stat["allocator"] for name, stat in stats.items()} == {
        "by-uuid": {"node": NODE, "device": "gpu_1", "queue": f"{queue}.gpu_1"},
        "by-environment": {"node": NODE, "device": "cpu", "queue": f"{queue}.cpu"},
    }


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_real_gpu_is_made_visible_by_its_uuid(
    new_cluster: Callable[..., Cluster],
    fake_nvml: FakeNvml,  # noqa: F811
) -> None:
    """CUDA counts GPUs in another order than the driver: the task sees its own by UUID, and no other."""
    gpus = [FakeGpu("GPU-aaaa", memory_mb=4096), FakeGpu("GPU-bbbb", memory_mb=8192)]
    nvml = {k: v for k, v in fake_nvml.environ(gpus).items() if k in ("LD_LIBRARY_PATH", "FAKE_NVML_SCRIPT")}
    cluster = new_cluster(host={"ALLOCATOR_NODE": "host1", "ALLOCATOR_DEVICES": "auto", **nvml})
    cluster.start(one_slot("gpu1", "1"), one_slot("cpu", "none"))
    on_gpu = cluster.app.send_task("zoo.where").get(timeout=SOON_S)
    assert on_gpu["device"] == on_gpu["allocation"]["uuid"] == "GPU-bbbb"
    assert cluster.app.send_task("zoo.cpu_where").get(timeout=SOON_S)["device"] == ""
    cluster.settle()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_second_worker_on_a_device_is_refused(
    new_cluster: Callable[..., Cluster], process: Callable[..., OwnedProcess]
) -> None:
    """Two workers would each think that they have all of its slots."""
    cluster = new_cluster()
    cluster.start(one_slot("first", "0"))
    second = process(cluster, "--gpu", "0", "-n", "second@here")
    assert second.wait(SOON_S) == 1
    assert "device host1/gpu_0 is already served by worker first@" in second.output()
    assert "Run one worker per device" in second.output()
    assert cluster.app.send_task("zoo.add", (1, 2)).get(timeout=SOON_S) == 3
    assert cluster.device("gpu_0").worker.startswith("first@")
    cluster.settle()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_worker_without_a_device_runs_plain_tasks_only(new_cluster: Callable[..., Cluster]) -> None:
    """Without ``--gpu`` a worker is Celery's: it is not in the ledger."""
    cluster = new_cluster()
    cluster.start(WorkerSpec(MODULE, name="plain", args=("--concurrency", "1")))
    assert cluster.app.send_task("zoo.plain", (1,)).get(timeout=SOON_S) == 1
    assert cluster.ledger.snapshot().workers == ()


# --- death and restart


def test_a_killed_worker_is_followed_at_once_by_its_namesake(new_cluster: Callable[..., Cluster]) -> None:
    """``kill -9``: no lease is waited for; what may be repeated runs again, the rest fails visibly."""
    cluster = new_cluster()
    cluster.start(worker_spec("gpu0", "0"))
    once, again = cluster.key(), cluster.key()
    lost = cluster.app.send_task("zoo.hold", (once,))
    repeated = cluster.app.send_task("zoo.late_hold", (again,))
    cluster.held_in(once)
    cluster.held_in(again)
    waiting = cluster.app.send_task("zoo.add", (1, 2))
    token = cluster.only(repeated.id).token

    cluster.workers["gpu0"].kill()
    cluster.workers["gpu0"].restart()

    cluster.held_in(again)
    assert cluster.only(repeated.id).token > token
    cluster.let_go(again)
    assert repeated.get(timeout=SOON_S) == again
    assert waiting.get(timeout=SOON_S) == 3
    with pytest.raises(WorkerLostError, match="was lost, and the task may not be repeated"):
        lost.get(timeout=SOON_S)
    cluster.settle()


def test_a_dead_workers_tasks_go_elsewhere_when_its_lease_is_over(new_cluster: Callable[..., Cluster]) -> None:
    """No restart: another worker's tick sees it."""
    cluster = new_cluster(host={**HOST, **SHORT})
    cluster.start(one_slot("gpu0", "0"), one_slot("gpu1", "1"))
    key = cluster.key()
    result = cluster.app.send_task("zoo.late_hold", (key,))
    cluster.held_in(key)
    first = cluster.only(result.id)
    cluster.workers[str(first.device_id).replace("_", "")].kill()
    cluster.held_in(key)
    second = cluster.only(result.id)
    assert second.device_id != first.device_id
    assert (second.losses, second.token > first.token) == (1, True)
    cluster.let_go(key)
    assert result.get(timeout=SOON_S) == key
    cluster.settle()


def test_a_warm_shutdown_finishes_its_tasks_and_leaves_the_rest_to_others(new_cluster: Callable[..., Cluster]) -> None:
    """SIGTERM: nothing new is granted to it, what runs ends well, what waits runs elsewhere."""
    cluster = new_cluster()
    cluster.start(one_slot("gpu0", "0"), one_slot("gpu1", "1"))
    keys = [cluster.key(), cluster.key()]
    running = [cluster.app.send_task("zoo.hold", (key,)) for key in keys]
    for key in keys:
        cluster.held_in(key)
    waiting = [cluster.app.send_task("zoo.where") for _ in range(3)]
    place = {cluster.only(each.id).device_id: key for each, key in zip(running, keys, strict=True)}
    assert len(cluster.ledger.queue()) == 3

    cluster.workers["gpu0"].kill("SIGTERM")
    closing = "closing"
    cluster.until(
        lambda: closing in {e["event"] for _, e in cluster.ledger.events(count=10_000)}, "the worker to close"
    )
    cluster.let_go(place["gpu_0"])
    cluster.until(lambda: not cluster.workers["gpu0"].container.process.alive, "the worker's end")
    assert cluster.workers["gpu0"].container.process.returncode == 0
    assert len(cluster.ledger.queue()) == 3  # gpu_1 is busy still
    cluster.let_go(place["gpu_1"])
    assert {each.get(timeout=SOON_S)["allocation"]["device"] for each in waiting} == {"gpu_1"}
    assert [each.get(timeout=SOON_S) for each in running] == keys
    assert [w.device_id for w in cluster.ledger.snapshot().workers] == ["gpu_1"]
    cluster.settle()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_cold_shutdown_gives_everything_back(new_cluster: Callable[..., Cluster]) -> None:
    """SIGQUIT: what may be repeated waits for the next worker; the rest has failed, and says so."""
    cluster = new_cluster()
    cluster.start(worker_spec("gpu0", "0"))
    keys = [cluster.key(), cluster.key()]
    again, once = cluster.app.send_task("zoo.late_hold", keys[:1]), cluster.app.send_task("zoo.hold", keys[1:])
    pids = [cluster.held_in(key) for key in keys]
    worker = cluster.workers["gpu0"].container.process
    worker.send(signal.SIGQUIT)
    cluster.until(lambda: not worker.alive, "the worker's end")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [a.state for a in cluster.ledger.find(again.id)] == [State.WAITING]
    with pytest.raises(WorkerLostError, match="was lost, and the task may not be repeated"):
        once.get(timeout=SOON_S)
    cluster.workers["gpu0"].restart()
    cluster.held_in(keys[0])
    cluster.let_go(keys[0])
    assert again.get(timeout=SOON_S) == keys[0]
    cluster.settle()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_stopped_worker_comes_back_after_its_lease(new_cluster: Callable[..., Cluster]) -> None:
    """SIGSTOP for longer than its lease: its task is granted elsewhere, and its late answers change nothing."""
    cluster = new_cluster(host={**HOST, **SHORT})
    cluster.start(one_slot("gpu0", "0"), one_slot("gpu1", "1"))
    key = cluster.key()
    result = cluster.app.send_task("zoo.late_hold", (key,))
    child = cluster.held_in(key)
    first = cluster.only(result.id)
    main = cluster.workers[str(first.device_id).replace("_", "")].container.process.pid
    for pid in (main, child):
        os.kill(pid, signal.SIGSTOP)
    try:
        cluster.held_in(key)  # it runs again, elsewhere
        assert cluster.only(result.id).device_id != first.device_id
    finally:
        for pid in (main, child):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    # The first run and the second are both told to end; the first's release must not free what the second holds.
    cluster.let_go(key, key)
    assert result.get(timeout=SOON_S) == key
    cluster.until(lambda: len(cluster.ledger.snapshot().workers) == 2, "the stopped worker to register again")
    cluster.settle()


# --- other pools


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools(new_cluster: Callable[..., Cluster], pool: str) -> None:
    """Everything in one process: results, retry, failure and waiting are the same."""
    cluster = new_cluster()
    cluster.start(worker_spec("gpu0", "0", "--pool", pool, "--concurrency", "1" if pool == "solo" else "3"))
    send = cluster.app.send_task
    added = [send("zoo.add", (n, 1)) for n in range(10)]
    retried = send("zoo.retry", (cluster.key(), 2))
    failed = send("zoo.fail")
    assert [each.get(timeout=SOON_S) for each in added] == [n + 1 for n in range(10)]
    assert retried.get(timeout=SOON_S)["allocation"]["device"] == "gpu_0"
    with pytest.raises(ValueError, match="as asked"):
        failed.get(timeout=SOON_S)
    everything = sorted(os.sched_getaffinity(0))
    saw = send("zoo.where").get(timeout=SOON_S)
    assert saw["affinity"] == (sorted({*saw["allocation"]["cores"]} & {*everything}) or everything)
    cluster.settle()
