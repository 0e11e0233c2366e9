"""Which device and which cores: strategies, contiguity, affinity."""

from __future__ import annotations

import pytest

from celery_allocator.model import DeviceInventory, NodeInventory, State, Strategy
from tests.support.ledger_pool import LedgerPool


def test_best_fit_takes_the_least_memory_left_then_the_fewest_cores_left_then_the_first(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(16_000, 8_000), cores=8)
    cluster.node("n2", gpus=(8_000, 8_000), cores=4)
    cluster.node("n3", gpus=(24_000,), cores=2)
    assert cluster.submit(4_000).allocation.node == "n2"  # 8,000 left as on n1, with fewer cores beside it
    placed = cluster.submit(4_000).allocation
    assert (placed.node, placed.device_id) == ("n2", "gpu_0")  # 4,000 left is the least now
    placed = cluster.submit(4_000).allocation
    assert (placed.node, placed.device_id) == ("n2", "gpu_1")
    assert cluster.submit(9_000).allocation.node == "n1"
    assert cluster.submit(4_000, 4).allocation.node == "n1"  # n2 has memory, but not the cores


def test_first_fit_takes_the_first_registered_that_fits(cluster: LedgerPool) -> None:
    cluster.node("n2", gpus=(16_000, 8_000))
    cluster.node("n1", gpus=(4_000,))
    places = [cluster.submit(4_000, strategy=Strategy.FIRST_FIT).allocation for _ in range(7)]
    assert [f"{a.node}/{a.device_id}" for a in places] == ["n2/gpu_0"] * 4 + ["n2/gpu_1"] * 2 + ["n1/gpu_0"]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_order_of_registration_outlives_the_order_of_a_later_list(cluster: LedgerPool, strategy: Strategy) -> None:
    """A node that lists its devices in another order changes nothing of which of two equals is first."""
    devices = [DeviceInventory(f"gpu_{i}", i, f"GPU-{i}", "simulated", 8_000) for i in range(2)]
    for order in (devices, devices[::-1]):
        cluster.ledger.register_node(NodeInventory("n1", tuple(range(8)), 64_000, tuple(order)), 60)
    cluster.worker("n1", "gpu_0")
    cluster.worker("n1", "gpu_1")
    assert cluster.submit(8_000, 4, strategy=strategy).allocation.device_id == "gpu_0"
    assert cluster.submit(8_000, 4, strategy=strategy).allocation.device_id == "gpu_1"
    for name in ("a1", "a2"):
        cluster.ledger.cancel(name)
    cluster.by_hand(0, 8, id="holder")
    cluster.submit(8_000, 4, strategy=strategy, id="first")
    cluster.ledger.cancel("holder")
    assert cluster.ledger.get("first").device_id == "gpu_0"


@pytest.mark.parametrize("strategy", list(Strategy))
def test_among_the_waiting_priority_comes_before_arrival(cluster: LedgerPool, strategy: Strategy) -> None:
    cluster.node(gpus=(8_000,))
    holder = cluster.submit(8_000).allocation
    for priority in (0, 1000, -1000, 1, 1000):
        cluster.submit(8_000, priority=priority, strategy=strategy)
    order = []
    for _ in range(5):
        (grant,) = cluster.ledger.release(holder.allocation_id, holder.token).grants
        order.append(grant.allocation_id)
        holder = cluster.ledger.get(grant.allocation_id)
    assert order == ["a3", "a6", "a5", "a2", "a4"]


def test_nothing_of_lower_priority_passes_on_a_device_that_a_higher_one_could_use(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(8_000,))
    cluster.node("n2", gpus=(16_000,))
    small, large = cluster.submit(8_000).allocation, cluster.submit(16_000).allocation
    cluster.submit(16_000, priority=5)  # a3: fits n2 alone
    cluster.submit(4_000)  # a4: fits either
    assert [g.allocation_id for g in cluster.ledger.release(small.allocation_id).grants] == ["a4"]
    assert [g.allocation_id for g in cluster.ledger.release(large.allocation_id).grants] == ["a3"]


@pytest.mark.parametrize(("strategy", "device"), [(Strategy.FIRST_FIT, "gpu_0"), (Strategy.BEST_FIT, "gpu_1")])
def test_the_strategy_also_picks_the_device_of_what_waited(
    cluster: LedgerPool, strategy: Strategy, device: str
) -> None:
    cluster.node(gpus=(16_000, 8_000, 8_000), cores=4)
    cluster.by_hand(0, 4, id="cores")
    cluster.submit(4_000, 4, strategy=strategy)
    cluster.ledger.cancel("cores")
    assert cluster.ledger.get("a1").device_id == device


def test_cpu_work_takes_cores_from_no_idle_gpu_then_the_node_with_the_fewest_that_do(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(8_000,), cores=4)
    cluster.node("n2", gpus=(), cores=8)
    cluster.node("n3", gpus=(), cores=4)
    placed = cluster.submit(0, 3).allocation
    assert (placed.node, placed.device_id, placed.gpu_id) == ("n3", "cpu", None)
    assert cluster.submit(0, 6).allocation.node == "n2"
    assert cluster.submit(0, 3).allocation.node == "n1"  # beside an idle GPU, as nothing else is free


# --- worker slots


def test_a_grant_needs_a_free_worker_slot(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), slots=2)
    assert [cluster.submit(1_000).allocation.state for _ in range(3)] == [State.GRANTED, State.GRANTED, State.WAITING]
    assert cluster.by_hand(1_000).allocation.state is State.RUNNING  # by hand, it takes none


def test_no_worker_no_grant(cluster: LedgerPool) -> None:
    cluster.node(slots=None)
    assert cluster.submit(1_000).allocation.state is State.WAITING
    assert [g.allocation_id for g in cluster.worker("n1", "gpu_0")] == ["a1"]


# --- cores


def test_cores_are_contiguous_where_possible(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    claims = [cluster.submit(100, 2).allocation for _ in range(4)]
    assert [a.cpu_cores for a in claims[:3]] == [(0, 1), (2, 3), (4, 5)]
    cluster.ledger.release(claims[0].allocation_id)
    cluster.ledger.release(claims[1].allocation_id)
    assert cluster.submit(100, 1).allocation.cpu_cores == (0,)
    assert cluster.submit(100, 3).allocation.cpu_cores == (1, 2, 3)


def test_fragments_serve_when_there_is_no_run(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=(0, 2, 3, 5, 7))
    assert cluster.submit(100, 2).allocation.cpu_cores == (2, 3)
    assert cluster.submit(100, 3).allocation.cpu_cores == (0, 5, 7)


def test_cores_near_the_device_come_first(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 11_000), cores=8, near={0: (4, 5, 6, 7), 1: (0, 1, 2, 3)})
    near_0 = cluster.submit(10_000, 2).allocation
    assert (near_0.device_id, near_0.cpu_cores) == ("gpu_0", (4, 5))
    near_1 = cluster.submit(11_000, 2).allocation
    assert (near_1.device_id, near_1.cpu_cores) == ("gpu_1", (0, 1))


def test_a_run_elsewhere_is_better_than_fragments_near(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=(0, 1, 2, 4, 6), near={0: (4, 6)})
    assert cluster.submit(100, 2).allocation.cpu_cores == (0, 1)
    assert cluster.submit(100, 2).allocation.cpu_cores == (4, 6)  # near ones before core 2


def test_affinity_of_two_ranges(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=12, near={0: (2, 3, 8, 9, 10)})
    assert cluster.submit(100, 3).allocation.cpu_cores == (8, 9, 10)
    assert cluster.submit(100, 2).allocation.cpu_cores == (2, 3)
    assert cluster.submit(100, 2).allocation.cpu_cores == (0, 1)


def test_core_ids_of_a_large_node(cluster: LedgerPool) -> None:
    """Two sockets of 64: every id comes out once, the ids above 99 unharmed."""
    cluster.node(gpus=(100_000,), cores=128, near={0: tuple(range(64, 128))}, slots=128)
    claims = [cluster.submit(10, 16).allocation for _ in range(8)]
    assert claims[0].cpu_cores == tuple(range(64, 80))
    assert claims[3].cpu_cores == tuple(range(112, 128))
    assert sorted(core for a in claims for core in a.cpu_cores) == list(range(128))
    assert cluster.submit(10, 1).allocation.state is State.WAITING


def test_no_cores_asked_none_given(cluster: LedgerPool) -> None:
    cluster.node()
    allocation = cluster.submit(100, 0, 1_000).allocation
    assert allocation.cpu_cores == ()
    assert cluster.ledger.snapshot().nodes[0].ram_free_mb == 63_000
