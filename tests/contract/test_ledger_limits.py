"""What asks for more than amounts: shares, whole GPUs, models, nodes, labels, room apart, GPUs near each other."""

from __future__ import annotations

import dataclasses

import pytest

from celery_allocator.errors import UnsatisfiableError
from celery_allocator.ledger import Claim, Note, keys
from celery_allocator.model import DeviceInventory, Kind, Link, NodeInventory, State, Strategy
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool

EVERY = pytest.mark.parametrize("strategy", list(Strategy))


@EVERY
def test_a_share_is_one_of_the_gpu_it_lands_on(cluster: LedgerPool, strategy: Strategy) -> None:
    cluster.node("n1", gpus=(10_001,))
    claims = [cluster.submit(share=0.25, strategy=strategy).allocation for _ in range(5)]
    assert [a.gpu_memory_mb for a in claims] == [2_501, 2_501, 2_501, 0, 0]
    assert [a.state.value for a in claims] == ["granted"] * 3 + ["waiting"] * 2
    read = cluster.ledger.get(claims[0].allocation_id)
    assert (read.gpu_memory_mb, read.requirements) == (2_501, claims[0].requirements)
    assert claims[0].requirements.as_dict()["gpu"] == 0.25
    assert (claims[3].gpu_id, claims[3].requirements) == (None, claims[0].requirements)
    assert_right(cluster.ledger)
    cluster.node("n2", gpus=(40_000,))
    moved = cluster.ledger.get(claims[3].allocation_id)
    assert (moved.place, moved.gpu_memory_mb, moved.gpu_uuid) == ("n2/gpu_0", 10_000, "GPU-n2-0")
    assert_right(cluster.ledger)


def test_a_share_is_at_least_the_mb_that_are_asked_for(cluster: LedgerPool) -> None:
    cluster.node(gpus=(4_000, 80_000))
    small = cluster.submit(3_000, share=0.1).allocation
    assert (small.place, small.gpu_memory_mb) == ("n1/gpu_0", 3_000)
    large = cluster.submit(5_000, share=0.1).allocation
    assert (large.place, large.gpu_memory_mb) == ("n1/gpu_1", 8_000)
    with pytest.raises(UnsatisfiableError, match="gpu_memory_mb=81000 can never be met"):
        cluster.submit(81_000, share=0.1)


def test_a_share_that_goes_back_into_line_may_come_to_something_else(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,))
    held = cluster.submit(share=0.5, id="held").allocation
    assert held.gpu_memory_mb == 5_000
    cluster.node("n2", gpus=(40_000,))
    cluster.ledger.set_state("n1", "draining")
    moved = cluster.ledger.get("held")
    assert (moved.place, moved.gpu_memory_mb, moved.requirements) == ("n2/gpu_0", 20_000, held.requirements)
    cluster.ledger.set_state("n2", "draining")
    waiting = cluster.ledger.get("held")
    assert (waiting.state, waiting.gpu_memory_mb, waiting.requirements) == (State.WAITING, 0, held.requirements)
    assert_right(cluster.ledger)
    assert cluster.ledger.cancel("held").done
    cluster.ledger.settle(["held"])
    assert_empty(cluster.ledger)


def test_a_whole_gpu_is_alone_on_it(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 16_000))
    cluster.submit(1_000, id="other")
    whole = cluster.submit(0, exclusive=True).allocation
    assert (whole.place, whole.gpu_memory_mb, whole.requirements.exclusive) == ("n1/gpu_1", 16_000, True)
    assert cluster.submit(8_000).allocation.state is State.WAITING
    next_whole = cluster.submit(8_000, exclusive=True, id="next").allocation
    assert next_whole.state is State.WAITING
    assert cluster.ends("other") == ["a2"]
    assert_right(cluster.ledger)


def test_a_share_is_claimed_again_and_brought_back(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    task = cluster.running(share=0.3, id="task")
    by_hand = cluster.by_hand(share=0.3, id="hand").allocation
    entry = cluster.ledger.release("hand", note=Note("release", actor="chief", reason="for a test")).entry
    note = Note("release", actor="chief", reason="for a test")
    cluster.ledger.restore("hand", note=dataclasses.replace(note, way="undo", of=entry))
    assert cluster.ledger.get("hand").gpu_memory_mb == by_hand.gpu_memory_mb == 3_000
    assert_right(cluster.ledger)
    cluster.ledger.client.flushall()
    cluster.node(gpus=(10_000,), slots=None)
    assert cluster.ledger.reclaim(task, "w.n1.gpu_0", report=1)[0] is Claim.STANDS
    again = cluster.ledger.get("task")
    assert (again.gpu_memory_mb, again.requirements) == (3_000, task.requirements)
    assert_right(cluster.ledger)


def test_what_is_counted_of_shares_can_be_made_anew(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.running(share=0.3)
    cluster.submit(share=0.3)
    cluster.ledger.client.delete(keys.key(cluster.ledger.pool, "on", "n1/gpu_0"))
    assert cluster.ledger.verify() != []
    assert cluster.ledger.repair().left == ()
    assert cluster.device("n1/gpu_0").memory_free_mb == 4_000
    assert_right(cluster.ledger)


def test_a_tenants_cap_counts_what_shares_come_to(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    cluster.quota("vision", gpu_memory_mb=6_000)
    assert cluster.submit(share=0.5, tenant="vision").allocation.gpu_memory_mb == 5_000
    assert cluster.submit(share=0.5, tenant="vision").allocation.state is State.WAITING
    assert cluster.submit(share=0.1, tenant="vision", id="small").allocation.gpu_memory_mb == 1_000
    assert_right(cluster.ledger)


@EVERY
def test_a_model_is_any_part_of_its_name(cluster: LedgerPool, strategy: Strategy) -> None:
    cluster.node("n1", gpus=(16_000, 80_000), models=("Tesla T4", "NVIDIA A100-SXM4-80GB"))
    for name in ("A100", "a100-sxm4", "nvidia a100"):
        assert cluster.submit(1_000, gpu_model=name, strategy=strategy).allocation.place == "n1/gpu_1"
    assert cluster.submit(1_000, gpu_model="T4", strategy=strategy).allocation.place == "n1/gpu_0"
    with pytest.raises(UnsatisfiableError) as refused:
        cluster.submit(1_000, gpu_model="H100", strategy=strategy)
    assert str(refused.value) == ("gpu_model=H100 can never be met: there is NVIDIA A100-SXM4-80GB, Tesla T4")
    with pytest.raises(UnsatisfiableError, match=r"gpu_memory_mb=20000 can never be met: .* is 16000"):
        cluster.submit(20_000, gpu_model="T4", strategy=strategy)
    assert_right(cluster.ledger)


@EVERY
def test_nodes_and_labels(cluster: LedgerPool, strategy: Strategy) -> None:
    cluster.node("n1", labels={"zone": "a", "disk": "ssd/nvme: fast; very=so"})
    cluster.node("n2", labels={"zone": "b"})
    assert cluster.submit(1_000, node="n2", strategy=strategy).allocation.node == "n2"
    assert cluster.submit(1_000, labels={"zone": "b"}, strategy=strategy).allocation.node == "n2"
    fast = {"zone": "a", "disk": "ssd/nvme: fast; very=so"}
    assert cluster.submit(1_000, labels=fast, strategy=strategy).allocation.node == "n1"
    on_cores = cluster.submit(0, labels={"zone": "b"}, strategy=strategy, id="cores").allocation
    assert (on_cores.place, dict(cluster.ledger.get("cores").requirements.labels)) == ("n2/cpu", {"zone": "b"})
    for wanted, text in (
        ({"node": "n3"}, "node=n3 can never be met: there is n1, n2"),
        ({"labels": {"zone": "c"}}, "label zone=c can never be met: there is a, b"),
        ({"labels": {"rack": "1"}}, "label rack=1 can never be met: there is none"),
        ({"node": "n2", "labels": {"zone": "a"}}, "label zone=a can never be met: there is b"),
    ):
        with pytest.raises(UnsatisfiableError) as refused:
            cluster.submit(1_000, strategy=strategy, **wanted)
        assert str(refused.value) == text
    assert_right(cluster.ledger)


def test_one_that_may_go_nowhere_else_waits_and_holds_nobody_up(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,))
    cluster.node("n2", gpus=(10_000,))
    cluster.submit(10_000, node="n1", id="holder")
    assert cluster.submit(5_000, node="n1", id="first").allocation.state is State.WAITING
    assert cluster.submit(10_000, id="other").allocation.node == "n2"
    assert cluster.ends("holder") == ["first"]
    assert_right(cluster.ledger)


@EVERY
def test_of_one_word_there_is_one_on_a_node(cluster: LedgerPool, strategy: Strategy) -> None:
    cluster.node("n1", gpus=(10_000, 10_000))
    cluster.node("n2", gpus=(10_000,))
    web = {"anti_affinity": "web", "strategy": strategy}
    first, second, third = (cluster.submit(1_000, **web).allocation for _ in range(3))
    assert {first.node, second.node} == {"n1", "n2"}
    assert third.state is State.WAITING
    assert cluster.submit(1_000, anti_affinity="db", strategy=strategy).allocation.node is not None
    assert cluster.submit(1_000, strategy=strategy).allocation.node is not None
    assert cluster.ends(first.allocation_id) == [third.allocation_id]
    assert cluster.ledger.get(third.allocation_id).node == first.node
    assert_right(cluster.ledger)


def test_those_held_apart_start_one_by_one_where_several_are_let_in_at_once(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000, 10_000))
    cluster.submit(10_000, id="one")
    cluster.submit(10_000, id="two")
    for name in ("x", "y"):
        cluster.submit(1_000, anti_affinity="web", id=name)
    cluster.ledger.set_state("n1", "cordoned")
    cluster.ends("one")
    cluster.ends("two")
    cluster.ledger.set_state("n1", "ready")
    assert (cluster.state("x"), cluster.state("y")) == ("granted", "waiting")
    assert_right(cluster.ledger)


RING = {("gpu_0", "gpu_3"): Link.NVLINK, ("gpu_1", "gpu_2"): Link.NVLINK, ("gpu_0", "gpu_1"): Link.NUMA}


@EVERY
@pytest.mark.parametrize("kind", list(Kind))
def test_several_are_those_nearest_to_each_other(cluster: LedgerPool, strategy: Strategy, kind: Kind) -> None:
    cluster.node("n1", gpus=(10_000,) * 4, links=RING)
    cluster.submit(1_000, strategy=Strategy.FIRST_FIT)
    held = cluster.submit(10_000, gpu_count=2, strategy=strategy, kind=kind).allocation
    assert held.device_ids == ("gpu_1", "gpu_2")
    small = cluster.submit(1_000, gpu_count=2, strategy=strategy, kind=kind).allocation
    assert small.device_ids == ("gpu_0", "gpu_3")
    assert_right(cluster.ledger)


def test_a_node_where_they_are_linked_is_better(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,) * 2)
    cluster.node("n2", gpus=(80_000,) * 2, links={("gpu_0", "gpu_1"): Link.NVLINK})
    assert cluster.submit(5_000, gpu_count=2).allocation.node == "n2"
    assert cluster.submit(5_000, gpu_count=1).allocation.node == "n1"


def test_slices_of_a_gpu_are_not_taken_together(cluster: LedgerPool) -> None:
    slices = tuple(DeviceInventory(f"gpu_0_mig_{i}", i, f"MIG-{i}", "A100 1g.10gb", 9_000) for i in range(2))
    cluster.ledger.register_node(NodeInventory("n1", (0, 1, 2, 3), 1_000, slices), 60.0)
    assert cluster.by_hand(5_000).allocation.device_id == "gpu_0_mig_0"
    with pytest.raises(UnsatisfiableError, match="gpu_count=2 can never be met: the largest that exists is 0"):
        cluster.by_hand(1_000, gpu_count=2)


def test_a_share_of_several_is_one_of_equally_large_ones(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000, 40_000, 40_000))
    several = cluster.submit(share=0.5, gpu_count=2).allocation
    assert (several.device_ids, several.gpu_memory_mb) == (("gpu_1", "gpu_2"), 20_000)
    assert cluster.submit(0, exclusive=True, gpu_count=2, id="whole").allocation.state is State.WAITING
    with pytest.raises(UnsatisfiableError, match="gpu_count=3 can never be met: the largest that exists is 2"):
        cluster.submit(share=0.1, gpu_count=3)
    assert_right(cluster.ledger)


def test_also_where_the_least_that_it_asks_for_makes_them_alike(cluster: LedgerPool) -> None:
    """Else the same claim is granted while they are free, and refused as impossible while they are not."""
    cluster.node("n1", gpus=(10_000, 12_000))
    with pytest.raises(UnsatisfiableError, match="gpu_count=2 can never be met: the largest that exists is 1"):
        cluster.submit(5_000, share=0.1, gpu_count=2)
    cluster.node("n2", gpus=(12_000, 12_000))
    assert cluster.submit(5_000, share=0.1, gpu_count=2).allocation.node == "n2"


def test_when_it_will_start_is_told_for_these_too(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,))
    cluster.node("n2", gpus=(10_000,))
    cluster.ran("work", 60, 60, 60)
    cluster.running(10_000, node="n1")
    cluster.running(10_000, node="n2")
    for asked in ({"node": "n1"}, {"share": 0.5}, {"labels": {}}):
        waiting = cluster.submit(1_000, **asked).allocation
        assert waiting.estimated_start_at is not None
        assert 30 < waiting.estimated_start_at - cluster.at < 90
    assert_right(cluster.ledger)
