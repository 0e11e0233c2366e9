"""Who takes more of a real GPU than was promised, and what an idle child keeps of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_allocator.errors import ResourceOveruse
from celery_allocator.model import DeviceInventory
from celery_allocator.plugin.processes import born, is_gone
from tests.device.conftest import pids_are_told, used_mb
from tests.device.test_worker import Host, key
from tests.support.availability import no_device
from tests.support.redis_server import RedisServer
from tests.support.workers import WorkerFleet

__all__ = ["key"]  # a fixture
pytestmark = [pytest.mark.device, pytest.mark.usefixtures("alone")]

_SOON_S = 60.0
#: What the driver may still be sorting out for others.
_NOISE_MB = 64


@pytest.fixture
def host(gpu: DeviceInventory, redis_server: RedisServer, pool: str, workers: WorkerFleet) -> Iterator[Host]:
    kills = {"ALLOCATOR_ON_OVERUSE": "kill", "ALLOCATOR_WATCH_S": "0.2"}
    made = Host(gpu, redis_server, pool, workers, **kills)
    yield made
    made.close()


def test_overuse_is_killed_and_its_slot_comes_back_when_its_memory_is_free(host: Host, key: str) -> None:
    before = used_mb(host.gpu)
    over = host.send("device.hold", 4096, key, gpu_memory_mb=1024)
    if not pids_are_told(host.gpu, host.held_in(key)):
        host.client.rpush(key, "go")
        no_device("the driver keeps process ids to itself, so nobody is judged")
    with pytest.raises(ResourceOveruse) as caught:
        over.get(timeout=_SOON_S)
    assert (caught.value.resource, caught.value.promised_mb) == ("gpu_memory_mb", 1024)
    assert caught.value.used_mb >= 4096
    host.until(host.is_free, "the slot back", interval=0.001)
    assert used_mb(host.gpu) <= before + _NOISE_MB
    # It is of no consequence for the next one.
    assert host.send("device.look").get(timeout=_SOON_S)["driver"] == [host.gpu.uuid]


def test_an_idle_childs_context_is_counted_and_given_up_when_a_task_waits_for_it(host: Host, key: str) -> None:
    host.send("device.hold", 512, key, gpu_memory_mb=2048)
    child = host.held_in(key)
    since = born(child)
    if not pids_are_told(host.gpu, child):
        host.client.rpush(key, "go")
        no_device("the driver keeps process ids to itself, so nothing is known of idle children")
    host.client.rpush(key, "go")

    def kept_mb() -> int:
        use = host.view().use
        return 0 if use is None else use.gpu_memory_idle_mb or 0

    host.until(kept_mb, "what it keeps to be told")
    withheld = host.until(lambda: host.device().withheld_mb, "that to be withheld")
    assert not is_gone(child, since)
    need = host.device().memory_mb - withheld // 2
    assert host.send("device.look", gpu_memory_mb=need).get(timeout=_SOON_S)["driver"] == [host.gpu.uuid]
    assert is_gone(child, since)
    host.until(host.is_free, "the slot back")
