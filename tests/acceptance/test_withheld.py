"""Live reconcile: real workers on scripted GPUs, and others who use what the ledger thinks is free."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from celery_allocator.model import Allocation, NodeState, State, Withheld
from celery_allocator.overview import explain
from tests.support.cluster import SOON_S, Cluster
from tests.support.fake_nvml import FakeNvml, fake_nvml, nvml_library
from tests.support.scripted_host import GPU, ScriptedHost
from tests.support.waiting import wait_until

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
Made = Callable[..., Cluster]


class Host(ScriptedHost):
    """A node with one scripted GPU of 81,920 MB; ``start`` starts its worker of two slots."""

    def __init__(self, new_cluster: Made, nvml: FakeNvml, *processes: tuple[int, int | None]) -> None:
        super().__init__(new_cluster, nvml, 81_920, *processes)
        #: The pid of a process that is no worker's.
        self.somebody = psutil.Process().pid

    def hold(self, gpu_memory_mb: int) -> tuple[str, str]:
        """Submit a task that holds so much until it is let go: its key and its id."""
        key = self.cluster.key()
        return key, self.cluster.app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": gpu_memory_mb}).id

    def wait_for(self, withheld: Withheld) -> None:
        """Until so much is withheld."""
        seen = lambda: next(d for d in self.cluster.ledger.snapshot().devices if d.key == GPU)  # noqa: E731
        wait_until(lambda: seen().withheld == withheld, SOON_S, lambda: f"{withheld}, it is {seen().withheld}")
        assert seen().withheld_mb == withheld.total_mb

    def node(self) -> NodeState:
        found = self.cluster.ledger.node("host1")
        assert found is not None
        return found

    def why(self, task_id: str) -> str:
        return explain(self.cluster.ledger, self.allocation(task_id)).reason.text

    def allocation(self, task_id: str) -> Allocation:
        (found,) = self.cluster.ledger.find(task_id)
        return found


def test_a_foreign_process_is_placed_around_and_what_waits_is_granted_when_it_leaves(
    new_cluster: Made, fake_nvml: FakeNvml
) -> None:
    """It is there before the worker, so nothing may be granted in the moment that the worker comes, either."""
    somebody = psutil.Process().pid
    host = Host(new_cluster, fake_nvml, (somebody, 30_000))
    cluster = host.cluster
    large_key, large = host.hold(60_000)
    host.start()
    host.wait_for(Withheld(30_000))
    assert host.allocation(large).state is State.WAITING
    assert f"30,000 MB of {GPU} are used by processes that are not ours." in host.why(large)
    # What fits beside both passes it; it goes when it could, and uses all that it claims.
    small_key, _ = host.hold(20_000)
    child = cluster.held_in(small_key)
    host.becomes((somebody, 30_000), (child, 20_000))
    host.wait_for(Withheld(30_000))
    assert cluster.device("gpu_0").memory_free_mb == 31_920
    assert [event["event"] for _, event in cluster.ledger.events() if event["id"] == GPU] == ["withheld"]
    host.becomes((child, 20_000))
    cluster.held_in(large_key)
    assert cluster.device("gpu_0").memory_free_mb == 1_920
    # It comes back while all is granted: that stays granted, and nothing more is.
    host.becomes((child, 20_000), (somebody, 8_000))
    host.wait_for(Withheld(8_000))
    tiny_key, _ = host.hold(1_000)
    cluster.let_go(small_key)
    host.becomes((somebody, 8_000))
    cluster.held_in(tiny_key)
    cluster.let_go(large_key, tiny_key)
    cluster.settle()


def test_ram_that_others_use_and_cores_that_the_worker_may_not_use_any_more(
    new_cluster: Made, fake_nvml: FakeNvml
) -> None:
    host = Host(new_cluster, fake_nvml)
    host.start()
    # Something runs on every machine. How much others use to the MB: tests/plugin/test_meter.py.
    wait_until(lambda: host.node().ram_withheld.foreign_mb, SOON_S, "what this machine uses besides")
    assert 0 < host.node().ram_free_mb < host.node().ram_mb

    (worker,) = host.cluster.ledger.snapshot().workers
    main = psutil.Process(worker.pid)
    mask = main.cpu_affinity()
    assert mask is not None
    main.cpu_affinity(mask[:1])
    wait_until(lambda: host.node().cpu_cores == tuple(mask[:1]), SOON_S, "one core")
    main.cpu_affinity(mask)
    wait_until(lambda: host.node().cpu_cores == tuple(mask), SOON_S, "all of them")
    host.cluster.settle()


def test_what_tasks_and_idle_children_hold_beyond_claims_and_hidden_process_ids(
    new_cluster: Made, fake_nvml: FakeNvml
) -> None:
    host = Host(new_cluster, fake_nvml)
    cluster = host.cluster
    host.start()
    first_key, _ = host.hold(20_000)
    child = cluster.held_in(first_key)
    worker = psutil.Process(child).parent()
    assert worker is not None
    (idle,) = {process.pid for process in worker.children()} - {child}
    # The driver tells no process that means anything here: what is used beyond the claims is withheld.
    host.becomes((max(psutil.pids()) + 1_000_000, 24_000))
    host.wait_for(Withheld(4_000, pids_hidden=True))
    waiting_key, waiting = host.hold(60_000)
    hidden = f"4,000 MB of {GPU} are used beyond what is claimed; by whom cannot be told, process ids are hidden."
    wait_until(lambda: hidden in host.why(waiting), SOON_S, hidden)
    # 40 MB that no process has are the driver's bookkeeping.
    host.becomes((child, 25_000), (idle, 3_000), (host.somebody, 2_000), used_mb=30_040)
    host.wait_for(Withheld(2_040, 3_000, 5_000))
    told = host.why(waiting)
    assert f"3,000 MB of {GPU} are held by processes of its worker that run no task." in told
    assert f"5,000 MB of {GPU} are used by tasks beyond what they claimed." in told
    # A GPU that cannot be read: what was seen last stands.
    host.becomes(handle_code=15)
    wait_until(lambda: "meter: NVML" in cluster.logs(), SOON_S, "that it cannot be read")
    assert cluster.device("gpu_0").withheld == Withheld(2_040, 3_000, 5_000)
    # Beside the first 61,920 would be free, if the other child gave back what it keeps.
    host.becomes((child, 20_000), (idle, 3_000))
    host.wait_for(Withheld(0, 3_000))
    assert host.allocation(waiting).state is State.WAITING
    host.becomes((child, 20_000))
    cluster.held_in(waiting_key)
    host.wait_for(Withheld())
    assert cluster.logs().count("the driver's process ids mean nothing here") == 1
    cluster.let_go(first_key, waiting_key)
    cluster.settle()
