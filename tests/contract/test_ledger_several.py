"""Several GPUs of one node at once: all or none, taken and given back in one step, whatever happens between."""

from __future__ import annotations

import dataclasses

import pytest
import redis

from celery_allocator.errors import UnsatisfiableError
from celery_allocator.ledger import Claim, Note, Options, Submitted, keys
from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool

STRATEGIES = list(Strategy)


def several(
    cluster: LedgerPool, count: int, gpu: int = 8_000, cores: int = 1, ram: int = 0, name: str = "many", **more: object
) -> Submitted:
    """An allocation by hand on ``count`` GPUs."""
    requirements = Requirements(gpu, cores, ram, gpu_count=count)
    given = {"kind": Kind.MANUAL, "ttl_s": 30.0, **more}
    return cluster.ledger.submit(name, f"task of {name}", "work", requirements, **given)  # type: ignore[arg-type]


def free(cluster: LedgerPool) -> dict[str, int]:
    return {d.key: d.memory_free_mb for d in cluster.ledger.snapshot().devices if d.is_gpu}


def told(allocation: Allocation) -> tuple[str | None, tuple[str, ...]]:
    return allocation.node, allocation.device_ids


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_gives_memory_and_cores_and_ram_are_taken_once(cluster: LedgerPool, strategy: Strategy) -> None:
    cluster.node("n1", gpus=(8_000,))
    cluster.node("n2", gpus=(8_000, 16_000, 8_000, 16_000), cores=8, ram=64_000)
    held = several(cluster, 3, 6_000, cores=5, ram=1_000, strategy=strategy).allocation
    assert held.state is State.RUNNING
    assert held.node == "n2"
    assert len(held.device_ids) == len(set(held.device_ids)) == 3
    assert held.gpu_ids == held.device_ids
    assert held.gpu_uuids == tuple(f"GPU-n2-{device[-1]}" for device in held.device_ids)
    assert (held.gpu_id, held.gpu_uuid) == (held.gpu_ids[0], held.gpu_uuids[0])
    assert len(held.cpu_cores) == 5
    node = cluster.ledger.node("n2")
    assert node is not None
    assert (len(node.cpu_cores_free), node.ram_free_mb) == (3, 63_000)
    assert sorted(d.device_id for d in node.devices if d.allocations) == sorted(held.device_ids)
    read = cluster.ledger.get("many")
    assert (read.device_ids, read.gpu_uuids, read.cpu_cores) == (held.device_ids, held.gpu_uuids, held.cpu_cores)
    assert (read.requirements, str(read.strategy.value)) == (held.requirements, strategy.value)
    assert_right(cluster.ledger)
    assert cluster.ledger.release("many").done
    assert_empty(cluster.ledger)


@pytest.mark.parametrize(
    ("strategy", "node", "devices"),
    [
        (Strategy.BEST_FIT, "n2", ("gpu_0", "gpu_2")),
        (Strategy.PRIORITY, "n2", ("gpu_0", "gpu_2")),
        (Strategy.FIRST_FIT, "n1", ("gpu_0", "gpu_1")),
        (Strategy.SPREAD, "n1", ("gpu_1", "gpu_2")),
    ],
)
def test_the_strategy_picks_the_node_and_which_of_its_gpus(
    cluster: LedgerPool, strategy: Strategy, node: str, devices: tuple[str, ...]
) -> None:
    cluster.node("n1", gpus=(12_000, 24_000, 24_000))
    cluster.node("n2", gpus=(8_000, 16_000, 8_000))
    cluster.node("n3", gpus=(6_000, 16_000))  # the smallest, but only one has enough
    assert told(several(cluster, 2, strategy=strategy).allocation) == (node, devices)


def test_fgd_takes_whole_nodes_where_these_are_asked_for(cluster: LedgerPool) -> None:
    """Two GPUs of the node that is broken into already, so that the whole one is left for eight."""
    cluster.node("n1", gpus=(8_000,) * 4, cores=8)
    cluster.node("n2", gpus=(8_000,) * 4, cores=8)
    for number in range(5):
        several(cluster, 4, name=f"whole{number}", strategy=Strategy.FGD)
        cluster.ledger.release(f"whole{number}")
    cluster.submit(8_000, id="one", strategy=Strategy.FGD)
    one = cluster.ledger.get("one").node
    assert several(cluster, 2, strategy=Strategy.FGD).allocation.node == one
    assert_right(cluster.ledger)


def test_all_or_none(cluster: LedgerPool) -> None:
    """With one GPU too few on every node nothing is held, and it waits; then it takes all at once."""
    cluster.node("n1", gpus=(8_000, 8_000), cores=8)
    cluster.node("n2", gpus=(8_000, 8_000), cores=8)
    for name in ("a", "b", "c"):
        cluster.submit(8_000, 1, id=name, strategy=Strategy.SPREAD)
    before = free(cluster)
    assert several(cluster, 2).allocation.state is State.WAITING
    assert free(cluster) == before
    assert_right(cluster.ledger)
    cluster.ledger.release("a")
    held = cluster.ledger.get("many")
    if held.state is State.WAITING:
        cluster.ledger.release("c")
        held = cluster.ledger.get("many")
    assert (held.state, held.device_ids) == (State.RUNNING, ("gpu_0", "gpu_1"))
    assert_right(cluster.ledger)


@pytest.mark.parametrize("lack", ["cores", "ram"])
def test_cores_and_ram_of_the_node_count_too(cluster: LedgerPool, lack: str) -> None:
    cluster.node(gpus=(8_000, 8_000), cores=4, ram=10_000)
    cluster.by_hand(0, 3 if lack == "cores" else 1, 0 if lack == "cores" else 9_000, id="holder")
    assert several(cluster, 2, cores=2, ram=2_000).allocation.state is State.WAITING
    cluster.ledger.release("holder")
    assert cluster.ledger.get("many").state is State.RUNNING
    assert_right(cluster.ledger)


def test_what_no_node_has_is_said_with_the_most_there_is(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(8_000, 8_000))
    cluster.node("n2", gpus=(16_000, 16_000, 4_000))
    for gpu, count, largest in ((8_000, 3, 2), (2_000, 4, 3), (16_000, 3, 2)):
        with pytest.raises(UnsatisfiableError) as refused:
            several(cluster, count, gpu)
        assert (refused.value.dimension, refused.value.requested, refused.value.largest) == (
            "gpu_count",
            count,
            largest,
        )
    assert several(cluster, 3, 3_000, name="fits").allocation.node == "n2"
    assert several(cluster, 3, 3_000, name="waits").allocation.state is State.WAITING
    assert several(cluster, 9, name="patient", on_never="wait").allocation.state is State.WAITING


def test_a_task_takes_a_slot_of_the_first_ones_worker_and_is_lost_with_that_alone(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000, 8_000))
    task = cluster.start(several(cluster, 2, kind=Kind.TASK, ttl_s=None).allocation, repeatable=True)
    assert (task.device_ids, task.queue) == (("gpu_0", "gpu_1"), "q.n1.gpu_0")
    assert [cluster.device(f"n1/gpu_{i}").slots_free for i in range(3)] == [3, 4, 4]
    cluster.ledger.unregister_worker("w.n1.gpu_1", "one")
    assert cluster.state("many") == "running"
    assert_right(cluster.ledger)
    cluster.worker("n1", "gpu_1", "two", report=1)
    assert cluster.state("many") == "running"
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    again = cluster.ledger.get("many")
    assert (again.state, again.device_ids, again.losses) == (State.GRANTED, ("gpu_1", "gpu_2"), 1)
    assert_right(cluster.ledger)


def test_a_grant_that_has_not_started_goes_elsewhere_when_one_of_its_devices_is_emptied(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000, 8_000))
    several(cluster, 2, kind=Kind.TASK, ttl_s=None)
    cluster.ledger.set_state("n1/gpu_1", "draining")
    assert cluster.ledger.get("many").device_ids == ("gpu_0", "gpu_2")
    assert_right(cluster.ledger)


def test_a_worker_claims_all_of_its_devices_again(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000))
    task = cluster.start(several(cluster, 2, kind=Kind.TASK, ttl_s=None).allocation)
    cluster.ledger.client.flushall()
    cluster.node(gpus=(8_000, 8_000), slots=None)
    verdict, _ = cluster.ledger.reclaim(task, "w.n1.gpu_0", report=1)
    assert verdict is Claim.STANDS
    again = cluster.ledger.get("many")
    assert (again.device_ids, again.gpu_uuids, again.requirements) == (
        ("gpu_0", "gpu_1"),
        ("GPU-n1-0", "GPU-n1-1"),
        task.requirements,
    )
    assert_right(cluster.ledger)


def test_it_ends_with_its_ttl_and_by_cancel(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000, 8_000))
    several(cluster, 2)
    several(cluster, 3, name="next")
    assert cluster.ledger.cancel("many").done
    assert cluster.ledger.get("next").device_ids == ("gpu_0", "gpu_1", "gpu_2")
    assert_right(cluster.ledger)
    cluster.at += 31
    cluster.ledger.tick()
    assert_empty(cluster.ledger)


def test_undone_it_holds_the_same_devices_again_or_says_who_has_one(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000, 8_000), cores=4)
    held = several(cluster, 2, cores=2).allocation
    note = Note("release", actor="chief", reason="for a test")
    entry = cluster.ledger.release("many", note=note).entry
    again = dataclasses.replace(note, way="undo", of=entry)
    cluster.ledger.restore("many", note=again)
    now = cluster.ledger.get("many")
    assert (now.device_ids, now.cpu_cores, now.gpu_uuids) == (held.device_ids, held.cpu_cores, held.gpu_uuids)
    assert now.token > held.token
    assert_right(cluster.ledger)


def test_what_is_counted_can_be_made_anew(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000, 8_000), cores=8)
    held = several(cluster, 2, cores=2).allocation
    client, pool = cluster.ledger.client, cluster.ledger.pool
    client.delete(keys.key(pool, "on", "n1/gpu_1"))
    client.hset(keys.key(pool, "node", "n1"), "rfree", 5)
    assert cluster.ledger.verify() != []
    assert cluster.ledger.repair().left == ()
    assert_right(cluster.ledger)
    assert cluster.ledger.get("many").device_ids == held.device_ids
    client.hset(keys.key(pool, "alloc", "many"), "devs", "n1/gpu_0")
    assert any("number of devices is 1, should be 2" in told for told in cluster.ledger.verify())
    client.hset(keys.key(pool, "alloc", "many"), "devs", "n1/gpu_0 n1/gpu_1")
    assert_right(cluster.ledger)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("backfill", ["easy", "greedy"])
def test_small_ones_do_not_starve_it(ledger_client: redis.Redis, pool: str, backfill: str, known: bool) -> None:
    """Two always wait and two always run, never ending together: without a reservation it would never start."""
    cluster = LedgerPool(ledger_client, pool, Options(backfill=backfill, max_bypass=20, max_bypass_s=1e6))
    cluster.node(gpus=(8_000, 8_000, 4_000), cores=8, lease_s=1e6)
    names = iter(f"s{number}" for number in range(1_000))
    for name in (next(names), next(names)):
        cluster.start(cluster.submit(8_000, id=name).allocation)
    several(cluster, 2, ttl_s=1e6)
    for _ in range(2):
        cluster.submit(8_000, id=next(names))
    for _ in range(100):
        cluster.at += 5
        running = [a for a in cluster.ledger.held() if a.allocation_id != "many"]
        if not running:
            break
        oldest = min(running, key=lambda a: a.token)
        cluster.ledger.release(oldest.allocation_id, outcome="success" if known else "failure")
        cluster.submit(8_000, id=next(names))
        for allocation in cluster.ledger.held():
            if allocation.state is State.GRANTED:
                cluster.start(allocation)
        cluster.ledger.tick()
        if cluster.ledger.get("many").state is State.RUNNING:
            break
    started = cluster.ledger.get("many").state is State.RUNNING
    assert started == (backfill == "easy")
    assert_right(cluster.ledger)
