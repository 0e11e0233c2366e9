"""What is in use and no claim accounts for: it is withheld, shown, and given back when its user goes."""

from __future__ import annotations

import itertools

import pytest

from celery_allocator.errors import LedgerError
from celery_allocator.ledger import Ledger, Withholding, keys
from celery_allocator.model import NodeState, RamUse, State, Withheld
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool

GPU, CPU = "n1/gpu_0", "n1/cpu"


def tell(
    cluster: LedgerPool, gpu: Withheld | None = None, ram: RamUse | None = None, device: str = GPU, **how: bool
) -> Withholding:
    told = cluster.ledger.withhold(f"w.{device.replace('/', '.')}", "one", device, gpu, ram, **how)
    assert told is not None
    assert_right(cluster.ledger)
    return told


def node(ledger: Ledger) -> NodeState:
    found = ledger.node("n1")
    assert found is not None
    return found


def withheld_events(cluster: LedgerPool) -> list[dict[str, str]]:
    return [event for _, event in cluster.ledger.events() if event["event"] == "withheld"]


# --- GPU memory


def test_nothing_is_placed_on_memory_that_others_use_until_they_leave(cluster: LedgerPool) -> None:
    cluster.node(gpus=(80_000,))
    assert tell(cluster, Withheld(30_000)) == Withholding((), 30_000, 0, leftover_blocks=False)
    device = cluster.device(GPU)
    assert (device.memory_mb, device.memory_free_mb, device.withheld_mb) == (80_000, 50_000, 30_000)
    assert (device.withheld, device.memory_claimed_mb) == (Withheld(30_000), 0)
    assert cluster.submit(60_000).allocation.state is State.WAITING
    assert cluster.submit(20_000).allocation.state is State.GRANTED
    assert [grant.allocation_id for grant in tell(cluster, Withheld()).grants] == ["a1"]
    assert cluster.device(GPU).memory_free_mb == 0
    for name in ("a1", "a2"):
        cluster.ends(name)
    assert_empty(cluster.ledger)


def test_more_may_be_withheld_than_is_free(cluster: LedgerPool) -> None:
    """A foreign process has taken what was granted and not used yet: the claims stand, and nothing else is granted."""
    cluster.node(gpus=(10_000,))
    cluster.submit(8_000)
    tell(cluster, Withheld(5_000))
    assert cluster.device(GPU).memory_free_mb == -3_000
    assert cluster.submit(100).allocation.state is State.WAITING
    assert cluster.ends("a1") == ["a2"]
    assert cluster.device(GPU).memory_free_mb == 4_900
    assert cluster.ledger.repair().left == ()
    assert cluster.device(GPU).memory_free_mb == 4_900
    assert_right(cluster.ledger)


def test_repair_takes_no_grant_back_for_what_is_withheld(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=1_000)
    cluster.submit(8_000, ram=900)
    tell(cluster, Withheld(5_000), RamUse(500, 0))
    cluster.ledger.repair()
    assert cluster.state("a1") == "granted"
    assert (cluster.device(GPU).memory_free_mb, node(cluster.ledger).ram_free_mb) == (-3_000, -400)
    assert_right(cluster.ledger)


def test_every_part_of_it_counts_and_is_told(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    told = tell(cluster, Withheld(1_000, 200, 30, pids_hidden=True))
    assert told.gpu_memory_mb == cluster.device(GPU).withheld_mb == 1_230
    assert cluster.device(GPU).withheld == Withheld(1_000, 200, 30, pids_hidden=True)
    (event,) = withheld_events(cluster)
    names = ("id", "withheld_mb", "foreign_mb", "leftover_mb", "overuse_mb", "pids_hidden")
    assert [event[name] for name in names] == [GPU, "1230", "1000", "200", "30", "1"]


def test_what_was_not_measured_stays(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=1_000)
    tell(cluster, Withheld(1_000), RamUse(300, 100))
    assert tell(cluster) == Withholding((), 1_000, 200, leftover_blocks=False)


def test_only_changes_that_matter_are_told_of(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    for amount in (0, 40, 70, 103, 104, 0, 0):
        tell(cluster, Withheld(amount))
        assert cluster.device(GPU).withheld_mb == amount
    # 40: from 0. 103 is 63 from what was told; 104 is 64.
    assert [event["withheld_mb"] for event in withheld_events(cluster)] == ["40", "104", "0"]


def test_foreign_use_is_accounted_for_by_what_others_than_the_workers_tasks_hold(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    by_hand = cluster.by_hand(2_000).allocation
    both = cluster.by_hand(3_000, gpu_count=2).allocation
    task = cluster.running(1_000)
    assert by_hand.place == GPU
    assert task.place == GPU
    # 2000 and 3000 are held by hand; what the worker's own task uses the worker has told apart.
    tell(cluster, Withheld(4_000))
    assert cluster.device(GPU).withheld == Withheld()
    tell(cluster, Withheld(6_500, 100))
    assert cluster.device(GPU).withheld == Withheld(1_500, 100)
    # The second GPU of the claim on both.
    tell(cluster, Withheld(3_100), device="n1/gpu_1")
    assert cluster.device("n1/gpu_1").withheld == Withheld(100)
    cluster.ledger.release(both.allocation_id)
    tell(cluster, Withheld(6_500, 100))
    assert cluster.device(GPU).withheld == Withheld(4_500, 100)


def test_it_is_said_whether_what_idle_processes_hold_is_waited_for(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), slots=1)
    assert not tell(cluster, Withheld(0, 4_000)).leftover_blocks
    cluster.submit(7_000)
    assert tell(cluster, Withheld(0, 4_000)).leftover_blocks
    assert not tell(cluster, Withheld(4_000)).leftover_blocks
    assert not tell(cluster, Withheld(3_001, 4_000)).leftover_blocks, "it would not be enough"
    tell(cluster, Withheld(3_000, 2_000))
    running = cluster.running(5_000)
    assert not tell(cluster, Withheld(0, 4_000)).leftover_blocks, "there is no slot"
    cluster.ledger.cordon(GPU)
    cluster.ends(running.allocation_id)
    assert not tell(cluster, Withheld(0, 4_000)).leftover_blocks, "the device takes nothing"
    assert cluster.ledger.uncordon(GPU) == ()
    assert tell(cluster, Withheld(0, 4_000)).leftover_blocks
    assert [grant.allocation_id for grant in tell(cluster, Withheld(0, 3_000)).grants] == ["a1"]


def test_a_worker_says_it_before_it_registers(cluster: LedgerPool) -> None:
    """So that nothing is granted in the moment that it does."""
    cluster.node(gpus=(10_000,), slots=None)
    cluster.submit(8_000, on_never="wait")
    tell(cluster, Withheld(3_000), registering=True)
    assert cluster.worker("n1", "gpu_0") == ()
    assert [grant.allocation_id for grant in tell(cluster, Withheld(2_000)).grants] == ["a1"]


def test_only_the_worker_of_the_device_may_say_it(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    withhold = cluster.ledger.withhold
    assert withhold("w.n1.gpu_0", "two", GPU, Withheld(1)) is None
    assert withhold("somebody", "one", GPU, Withheld(1)) is None
    assert withhold("somebody", "two", GPU, Withheld(1), registering=True) is None
    assert withhold("w.n1.gpu_0", "one", "n1/gpu_7", Withheld(1), registering=True) is None
    assert cluster.device(GPU).withheld_mb == 0
    # One that comes in the place of its namesake; and anybody once the lease is over.
    assert withhold("w.n1.gpu_0", "two", GPU, Withheld(1), registering=True) is not None
    cluster.at += 100
    assert withhold("somebody", "two", GPU, Withheld(2), registering=True) is not None
    assert cluster.device(GPU).withheld_mb == 2


@pytest.mark.parametrize("way", ["leaves", "is lost"])
def test_nothing_is_withheld_where_nobody_measures(cluster: LedgerPool, way: str) -> None:
    cluster.node(gpus=(10_000, 10_000), ram=1_000, lease_s=600)
    tell(cluster, Withheld(3_000), RamUse(500, 100))
    tell(cluster, Withheld(4_000), RamUse(500, 100), device="n1/gpu_1")
    assert cluster.by_hand(8_000, ttl_s=10_000).allocation.state is State.WAITING
    if way == "leaves":
        grants = cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
        assert (grants, cluster.state("a1")) == ((), "running")
    else:
        cluster.at += 599
        for name in ("gpu_1", "cpu"):
            cluster.ledger.heartbeat(f"w.n1.{name}", "one", 600)
        cluster.ticks(2)
        assert cluster.state("a1") == "running"
    assert_right(cluster.ledger)
    assert [cluster.device(key).withheld_mb for key in (GPU, "n1/gpu_1")] == [0, 4_000]
    assert node(cluster.ledger).ram_withheld_mb == 300, "others of the node measure on"
    for name in ("gpu_1", "cpu"):
        cluster.ledger.unregister_worker(f"w.n1.{name}", "one")
    assert node(cluster.ledger).ram_withheld_mb == 0
    cluster.ends("a1")
    assert_empty(cluster.ledger)


def test_nothing_is_withheld_of_a_node_that_is_lost(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=1_000, slots=None)
    tell(cluster, Withheld(3_000), RamUse(500, 100), registering=True)  # and then it died
    cluster.ticks(1_000)
    assert (cluster.device(GPU).memory_free_mb, node(cluster.ledger).ram_free_mb) == (10_000, 1_000)
    assert_right(cluster.ledger)


def test_capacity_may_change_beneath_it(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=1_000)
    tell(cluster, Withheld(3_000), RamUse(500, 100))
    cluster.node(gpus=(12_000,), ram=2_000, slots=None)
    assert (cluster.device(GPU).memory_free_mb, node(cluster.ledger).ram_free_mb) == (9_000, 1_600)
    assert_right(cluster.ledger)


def test_what_could_ever_fit_is_said_by_capacity(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    tell(cluster, Withheld(9_000))
    assert cluster.submit(10_000).allocation.state is State.WAITING


def test_what_cannot_be_read_of_it_is_nothing(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=1_000)
    tell(cluster, Withheld(3_000), RamUse(500, 100))
    pool, client = cluster.ledger.pool, cluster.ledger.client
    records = keys.key(pool, "dev", GPU), keys.key(pool, "node", "n1")
    for record in records:
        client.hset(record, "whof", "nonsense")
    assert (cluster.device(GPU).withheld, node(cluster.ledger).ram_withheld) == (Withheld(), Withheld())
    assert cluster.device(GPU).withheld_mb == 3_000
    for record in records:
        client.hset(record, "wh", "nonsense")
    with pytest.raises(LedgerError, match="the record of node n1 in the ledger is damaged"):
        cluster.ledger.snapshot()
    assert len(cluster.ledger.verify()) == 2, "free memory and free RAM"
    cluster.ledger.repair()
    assert (cluster.device(GPU).memory_free_mb, node(cluster.ledger).ram_free_mb) == (10_000, 1_000)
    tell(cluster, Withheld(2_000), RamUse(400, 100))
    assert (cluster.device(GPU).memory_free_mb, node(cluster.ledger).ram_free_mb) == (8_000, 700)


# --- RAM


def test_ram_that_others_use_is_withheld_of_the_whole_node(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=16_000)
    assert tell(cluster, ram=RamUse(5_000, 1_000)).ram_mb == 4_000
    # The other worker's share is not foreign, either; each tells the whole anew.
    assert tell(cluster, ram=RamUse(6_000, 1_500), device=CPU).ram_mb == 3_500
    assert (node(cluster.ledger).ram_free_mb, node(cluster.ledger).ram_withheld) == (12_500, Withheld(3_500))
    assert cluster.submit(ram=14_000).allocation.state is State.WAITING
    assert [grant.allocation_id for grant in tell(cluster, ram=RamUse(4_500, 1_000)).grants] == ["a1"]
    assert node(cluster.ledger).ram_free_mb == 0
    events = [(event["id"], event["withheld_mb"], event["foreign_mb"]) for event in withheld_events(cluster)]
    assert events == [("n1", "4000", "4000"), ("n1", "3500", "3500"), ("n1", "2000", "2000")]
    cluster.ends("a1")
    assert_empty(cluster.ledger)


def test_what_tasks_use_beyond_their_claims_and_what_is_held_by_hand(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=16_000)
    cluster.by_hand(ram=2_000)
    tell(cluster, ram=RamUse(9_000, 4_000, 700))
    assert node(cluster.ledger).ram_withheld == Withheld(3_000, 0, 700)
    tell(cluster, ram=RamUse(100, 4_000, 0))
    assert node(cluster.ledger).ram_withheld == Withheld()


# --- beside everything else


def test_the_amounts_add_up_whatever_comes_in_between(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 8_000), ram=16_000)
    amounts = itertools.cycle([0, 4_000, 9_000, 100, 12_000])
    for step in range(12):
        cluster.submit(1_000 * (step % 4), 1, 500 * (step % 3), on_never="wait")
        for device in (GPU, "n1/gpu_1"):
            tell(cluster, Withheld(next(amounts)), RamUse(next(amounts), 50), device=device)
        if step % 3 == 2:
            cluster.ends(f"a{step - 1}" if cluster.state(f"a{step - 1}") == "granted" else "a1")
    tell(cluster, Withheld(), RamUse(0, 0))
    tell(cluster, Withheld(), RamUse(0, 0), device="n1/gpu_1")
    while held := cluster.ledger.held():
        cluster.ends(held[0].allocation_id)
    assert_empty(cluster.ledger)
