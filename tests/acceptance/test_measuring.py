"""What GPUs are really used for, measured by workers through the real ``pynvml`` over a scripted library."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from celery_allocator.overview import Bar, read_overview
from tests.support.cluster import SOON_S, Cluster
from tests.support.fake_nvml import FakeNvml, fake_nvml, nvml_library
from tests.support.scripted_host import UUID, ScriptedHost
from tests.support.waiting import wait_until

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Host(ScriptedHost):
    """A node with one scripted GPU of 8192 MB and a worker of two slots."""

    def __init__(self, new_cluster: Callable[..., Cluster], nvml: FakeNvml) -> None:
        super().__init__(new_cluster, nvml, 8192)
        self.start()

    def wait_for(self, bar: Bar) -> None:
        wait_until(lambda: self.device.memory == bar, SOON_S, lambda: f"{bar}, it is {self.device.memory}")


def test_ours_foreign_and_each_task_are_told_apart(new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml) -> None:
    host = Host(new_cluster, fake_nvml)
    cluster, key = host.cluster, host.cluster.key()
    cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 2048})
    child, somebody = cluster.held_in(key), psutil.Process().pid
    assert child != somebody
    host.becomes((child, 3000), (somebody, 1000), used_mb=4200, utilization=80, temperature=70)
    # 200 MB are of nobody whom the driver lists.
    host.wait_for(Bar(8192, 2048, 3000, 1200, excess=952, withheld=2152))
    (running,) = read_overview(cluster.ledger).running
    use = host.device.use
    assert running.use is not None
    assert use is not None
    assert (running.use.gpu_memory_mb, use.gpu_utilization, use.gpu_temperature_c) == (3000, 0.8, 70)
    assert (running.use.ram_mb or 0) > 1
    host.becomes((child, 3000))
    host.wait_for(Bar(8192, 2048, 3000, 0, excess=952, withheld=952))
    cluster.let_go(key)
    cluster.settle()


def test_where_process_ids_mean_nothing_the_total_is_told(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml
) -> None:
    """As in a container without the host's process ids, and with a driver that supports no list of them.

    Nobody can tell whose it is: what is used beyond all claims is taken for others'.
    """
    host = Host(new_cluster, fake_nvml)
    unheard_of = max(psutil.pids()) + 1_000_000
    host.becomes((unheard_of, 700))
    host.wait_for(Bar(8192, 0, 0, 700, withheld=700))
    host.becomes(used_mb=5000)  # it lists nobody, and somebody is there
    host.wait_for(Bar(8192, 0, 0, 5000, withheld=5000))
    host.becomes(used_mb=900, now_code=3)
    host.wait_for(Bar(8192, 0, 0, 900, withheld=900))
    host.cluster.settle()


def test_a_driver_that_lists_what_is_in_this_container_and_nobody_else(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml
) -> None:
    """Nobody can be told from hidden ones until it has listed a process of ours; from then on it is foreign use."""
    host = Host(new_cluster, fake_nvml)
    cluster, key = host.cluster, host.cluster.key()
    cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 2048})
    child = cluster.held_in(key)
    host.becomes(used_mb=5000)
    host.wait_for(Bar(8192, 2048, 2048, 2952, withheld=2952))
    host.becomes((child, 1500), used_mb=6500)
    host.wait_for(Bar(8192, 2048, 1500, 5000, withheld=5000))
    host.becomes(used_mb=5000)
    host.wait_for(Bar(8192, 2048, 0, 5000, withheld=5000))
    cluster.let_go(key)
    cluster.settle()


def test_a_gpu_that_cannot_be_read_costs_nothing_but_the_figures(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml
) -> None:
    host = Host(new_cluster, fake_nvml)
    host.becomes((psutil.Process().pid, 500))
    host.wait_for(Bar(8192, 0, 0, 500, withheld=500))
    host.becomes(handle_code=15)
    host.wait_for(Bar(8192, 0, None, 500, withheld=500))
    assert host.cluster.app.send_task("zoo.where").get(timeout=SOON_S)["device"] == UUID
    host.becomes((psutil.Process().pid, 600))
    host.wait_for(Bar(8192, 0, 0, 600, withheld=600))
    logs = host.cluster.logs()
    assert logs.count("meter: NVML cannot read this host's GPUs") == 1
    host.cluster.settle()
