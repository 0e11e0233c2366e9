"""A real Celery worker that serves a real GPU."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import redis
from billiard.exceptions import WorkerLostError

from celery_allocator.inventory import read_use
from celery_allocator.ledger import Ledger
from celery_allocator.model import DeviceInventory, DeviceState, State
from celery_allocator.overview import DeviceView, explain, read_overview
from tests.device.app import make_app
from tests.device.conftest import Hold, pids_are_told, python_path, used_mb
from tests.support.availability import no_device
from tests.support.ledger_checks import assert_empty
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("alone")]

#: Seconds within which anything that should happen has happened: a first task loads what it needs from disk.
_SOON_S = 60.0
#: What a context and the allocator's rounding may take beside the memory that was asked for.
_CONTEXT_MB = 2000
#: What the driver may still be sorting out for others.
_NOISE_MB = 64


class Host:
    """This machine as a node, with a worker of two prefork slots that serves its first GPU."""

    def __init__(self, gpu: DeviceInventory, server: RedisServer, pool: str, workers: WorkerFleet, **env: str) -> None:
        self.gpu = gpu
        urls = {"broker_url": server.url.replace("/0", "/1"), "result_backend": server.url}
        self.app = make_app(**urls, allocator_backend_url=server.url, allocator_pool=pool)
        self.client: redis.Redis = redis.Redis.from_url(server.url, socket_timeout=2 * _SOON_S)
        self.ledger = Ledger(self.client, pool)
        self._workers = workers
        # By its UUID: it is the only one that this host offers, and keeps its index.
        workers.start(
            "tests.device.app",
            *("--gpu", str(gpu.index), "--concurrency", "2"),
            env={
                "PYTHONPATH": python_path(),
                "CELERY_BROKER_URL": urls["broker_url"],
                "CELERY_RESULT_BACKEND": urls["result_backend"],
                "ALLOCATOR_BACKEND_URL": server.url,
                "ALLOCATOR_POOL": pool,
                "ALLOCATOR_DEVICES": gpu.uuid,
                "ALLOCATOR_MEASURE_S": "0.2",
                "ALLOCATOR_HEARTBEAT_S": "0.2",
                "ALLOCATOR_HEALTH_S": "0.1",
                **env,
            },
            ready=lambda worker: any(device.worker for device in self.ledger.snapshot().devices),
        )

    def close(self) -> None:
        """What the test itself opened."""
        self.app.close()
        self.client.close()

    def send(self, name: str, *args: Any, **need: int) -> Any:
        """Send a task."""
        return self.app.send_task(name, args, **({"resources": need} if need else {}))

    def held_in(self, key: str) -> int:
        """Wait until a ``device.hold`` has its memory; returns its pid."""
        found = self.client.blpop([f"{key}:in"], timeout=_SOON_S)
        assert found, f"nothing ran with {key}:\n{self._workers.output()}"
        return int(found[1])

    def device(self) -> DeviceState:
        """The GPU as the ledger knows it."""
        return next(device for device in self.ledger.snapshot().devices if device.is_gpu)

    def view(self) -> DeviceView:
        """The GPU as people look at it."""
        return next(view for view in read_overview(self.ledger).devices if view.device.is_gpu)

    def until(self, predicate: Any, what: str, interval: float = 0.02) -> Any:
        """Wait for a condition."""
        return wait_until(predicate, _SOON_S, lambda: f"{what}; {self.view()}\n{self._workers.output()}", interval)

    def is_free(self) -> bool:
        """Whether no claim stands on the GPU. What an idle child keeps of it (its context) is withheld."""
        device = self.device()
        return device.memory_claimed_mb == 0 and device.slots_free == device.slots


@pytest.fixture
def host(gpu: DeviceInventory, redis_server: RedisServer, pool: str, workers: WorkerFleet) -> Iterator[Host]:
    made = Host(gpu, redis_server, pool, workers)
    yield made
    made.close()


@pytest.fixture
def key() -> str:
    """A fresh key of the result backend."""
    return f"key-{uuid.uuid4().hex[:12]}"


def test_the_ledger_knows_the_device_as_it_is(host: Host) -> None:
    known = host.device()
    assert (known.uuid, known.model, known.memory_mb) == (host.gpu.uuid, host.gpu.model, host.gpu.memory_mb)
    assert known.device_id == host.gpu.device_id


def test_a_task_sees_the_granted_device_and_no_other(host: Host) -> None:
    seen = host.send("device.look").get(timeout=_SOON_S)
    uuid = host.gpu.uuid
    torch = [uuid] if find_spec("torch") else None
    assert seen == {"granted": uuid, "environment": uuid, "driver": [uuid], "torch": torch}
    host.until(host.is_free, "the slot back")
    assert_empty(host.ledger)


def test_what_tasks_and_strangers_use_is_measured(host: Host, key: str, hold: Hold) -> None:
    before = used_mb(host.gpu)
    stranger = hold(512, foreign=True)
    host.send("device.hold", 1024, key, gpu_memory_mb=2048)
    pid = host.held_in(key)
    told = pids_are_told(host.gpu, pid) and pids_are_told(host.gpu, stranger)

    def both() -> bool:
        use = host.view().use
        return use is not None and (use.gpu_memory_used_mb or 0) >= before + 512 + 1024

    host.until(both, "both measured")
    (running,) = read_overview(host.ledger).running
    use = host.view().use
    assert use is not None and running.use is not None
    assert use.gpu_temperature_c == read_use(host.gpu.uuid).temperature_c or use.gpu_temperature_c is not None
    if told:
        assert 1024 <= (running.use.gpu_memory_mb or 0) <= 1024 + _CONTEXT_MB
        assert (use.gpu_memory_foreign_mb or 0) >= 512
    else:
        assert (running.use.gpu_memory_mb, use.gpu_memory_foreign_mb) == (None, None)
    host.client.rpush(key, "go")
    host.until(host.is_free, "the slot back")


def test_what_a_stranger_uses_is_withheld_until_it_ends(host: Host, key: str, hold: Hold) -> None:
    """Also where the driver keeps process ids to itself: nothing is claimed, so all that is used counts."""
    stranger = hold(4096, foreign=True)
    host.until(lambda: host.device().withheld_mb >= 4096, "4096 MB withheld")
    large = host.send("device.hold", 256, key, gpu_memory_mb=host.gpu.memory_mb - 2048)
    host.until(lambda: [a.state for a in host.ledger.find(large.id)] == [State.WAITING], "that it waits")
    (waiting,) = host.ledger.find(large.id)
    assert f" MB of {host.device().key} are used " in explain(host.ledger, waiting).reason.text
    os.kill(stranger, signal.SIGKILL)
    host.held_in(key)
    host.client.rpush(key, "go")
    host.until(host.is_free, "the slot back")


def test_a_killed_tasks_slot_comes_back_when_its_memory_is_free(host: Host, key: str) -> None:
    before = used_mb(host.gpu)
    lost = host.send("device.hold", 4096, key, gpu_memory_mb=8192)
    pid = host.held_in(key)
    assert used_mb(host.gpu) >= before + 4096
    assert host.device().memory_claimed_mb == 8192
    os.kill(pid, signal.SIGKILL)
    host.until(host.is_free, "the slot back", interval=0.001)
    assert used_mb(host.gpu) <= before + _NOISE_MB
    with pytest.raises(WorkerLostError):
        lost.get(timeout=_SOON_S)
    # The child that took its place, forked while the worker listened to the driver, can use the GPU. An Xid of the one
    # that was killed is no reason to take the GPU out.
    assert host.send("device.look").get(timeout=_SOON_S)["driver"] == [host.gpu.uuid]
    assert (host.device().state, host.device().reason) == ("ready", "")


def test_a_kernel_that_goes_astray_fails_its_task_and_leaves_the_gpu_in(host: Host) -> None:
    failed = host.send("device.stray")
    failed.wait(timeout=_SOON_S, propagate=False)
    assert failed.status == "FAILURE"
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(failed.result)
    host.until(host.is_free, "the slot back")
    assert (host.device().state, host.device().reason) == ("ready", "")
    assert host.ledger.journal() == ()


def test_more_than_there_is_fails_the_task_by_its_name(host: Host) -> None:
    """What runs out of GPU memory in PyTorch ends as a failure of that name; its slot is free again."""
    if find_spec("torch") is None:
        no_device("PyTorch is not installed")
    failed = host.send("device.too_much")
    failed.wait(timeout=_SOON_S, propagate=False)
    assert failed.status == "FAILURE"
    assert type(failed.result).__name__ == "OutOfMemoryError"
    host.until(host.is_free, "the slot back")
    (ended,) = [fields for _, fields in host.ledger.events() if fields["event"] == "released"]
    assert (ended["outcome"], ended["error"]) == ("failure", "OutOfMemoryError")
