"""Caps of real frameworks in a real worker, tasks that run out of memory, and a worker that may not fork."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from celery_allocator.model import DeviceInventory
from tests.device.test_worker import Host
from tests.support.availability import no_device
from tests.support.redis_server import RedisServer
from tests.support.workers import WorkerFleet

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("alone")]

#: Seconds for a task that imports its framework.
_SOON_S = 100.0


@pytest.fixture
def host(gpu: DeviceInventory, redis_server: RedisServer, pool: str, workers: WorkerFleet) -> Iterator[Host]:
    made = Host(gpu, redis_server, pool, workers, ALLOCATOR_OOM_GROWTH="4")
    yield made
    made.close()


@pytest.fixture(params=["torch", "cupy", "jax"])
def framework(request: pytest.FixtureRequest) -> str:
    if find_spec(request.param) is None:
        no_device(f"{request.param} is not installed")
    return str(request.param)


def test_it_is_capped_at_its_claim_and_tried_again_with_more(host: Host, framework: str) -> None:
    """The cap is the claim less 512 MB. Declares 1 GB and needs 3: fails once, then succeeds."""
    capped = host.send("device.take_once", framework, 1300, gpu_memory_mb=1600)
    capped.wait(timeout=_SOON_S, propagate=False)
    assert capped.status == "FAILURE", "1300 MB of a cap of 1088"
    assert type(capped.result).__name__ in ("OutOfMemoryError", "JaxRuntimeError")
    host.send("device.take_once", framework, 700, gpu_memory_mb=1600).get(timeout=_SOON_S)
    sent = host.send("device.take", framework, 3000, gpu_memory_mb=1024)
    claim, _pid = sent.get(timeout=_SOON_S)
    assert claim == 4096
    told = [fields["event"] for _, fields in host.ledger.events() if fields.get("task") == sent.id]
    assert told.count("grown") == 1
    host.until(host.is_free, "the slot back")


def test_who_asks_for_too_much_fails_with_the_frameworks_own_error(host: Host) -> None:
    if find_spec("torch") is None:
        no_device("PyTorch is not installed")
    failed = host.send("device.too_much")
    failed.wait(timeout=_SOON_S, propagate=False)
    assert (failed.status, type(failed.result).__name__) == ("FAILURE", "OutOfMemoryError")
    told = [fields["event"] for _, fields in host.ledger.events() if fields.get("task") == failed.id]
    assert told.count("grown") == 2
    host.until(host.is_free, "the slot back")


def test_a_worker_whose_main_process_uses_cuda_does_not_fork(
    gpu: DeviceInventory, redis_server: RedisServer, pool: str, workers: WorkerFleet
) -> None:
    with pytest.raises(AssertionError, match="has initialised CUDA"):
        Host(gpu, redis_server, pool, workers, DEVICE_APP_USES_CUDA="1")
