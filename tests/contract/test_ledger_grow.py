"""A task that ran out of GPU memory: granted again with a larger claim, in bounds."""

from __future__ import annotations

import pytest

from celery_allocator.ledger import Grown
from celery_allocator.model import Allocation, State
from tests.support.ledger_pool import LedgerPool


def grow(cluster: LedgerPool, allocation: Allocation, growth: float = 1.5, most: int = 2) -> Grown:
    return cluster.ledger.grow(allocation.allocation_id, allocation.token, growth, most)


def test_it_is_granted_again_with_more_and_says_so(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    first = cluster.running(1_001, 2, 3_000, repeatable=False, priority=3)
    grown = grow(cluster, first)
    assert (grown.done, grown.from_mb, grown.to_mb, grown.times) == (True, 1_001, 1_502, 1)
    (grant,) = grown.grants
    assert (grant.allocation_id, grant.message) == ("a1", b"message of a1")
    again = cluster.ledger.get("a1")
    assert (again.state, again.token, again.oom_retries) == (State.GRANTED, grant.token, 1)
    assert again.token > first.token
    assert (again.gpu_memory_mb, again.requirements.cpu_cores, again.ram_mb, again.priority) == (1_502, 2, 3_000, 3)
    assert cluster.device("n1/gpu_0").memory_free_mb == 10_000 - 1_502
    (told,) = [fields for _, fields in cluster.ledger.events() if fields["event"] == "grown"]
    assert (told["from"], told["to"], told["oom_retries"], told["shape"]) == ("1001", "1502", "1", "1502:2:3000:t")
    assert (told["device"], told["token"]) == ("n1/gpu_0", str(first.token))


def test_its_own_budget_ends_it(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    allocation = cluster.running(1_000)
    for claim in (1_500, 2_250):
        assert grow(cluster, allocation).to_mb == claim
        allocation = cluster.start(cluster.ledger.get("a1"), nonce=f"{claim}")
    assert grow(cluster, allocation) == Grown(False, "spent")
    assert cluster.ledger.get("a1") == allocation, "nothing has changed"
    assert grow(cluster, cluster.running(1_000), most=0) == Grown(False, "spent")


def test_it_asks_for_the_largest_device_at_most(cluster: LedgerPool) -> None:
    """One that could hold all the rest of it, too."""
    cluster.node("n1", gpus=(10_000, 12_000))
    cluster.node("n2", gpus=(40_000,), cores=1)
    allocation = cluster.running(9_000, 2)
    grown = grow(cluster, allocation)
    assert grown.to_mb == 12_000
    allocation = cluster.start(cluster.ledger.get("a1"), nonce="again")
    assert allocation.device_id == "gpu_1"
    assert grow(cluster, allocation) == Grown(False, "largest")


def test_and_for_what_its_tenant_may_hold_at_most(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.quota("vision", gpu_memory_mb=2_600)
    allocation = cluster.running(2_000, tenant="vision")
    assert grow(cluster, allocation).to_mb == 2_600
    allocation = cluster.start(cluster.ledger.get("a1"), nonce="again")
    assert grow(cluster, allocation) == Grown(False, "largest")


def test_it_keeps_its_place_and_what_it_gave_back_is_others(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    first = cluster.running(6_000, id="first")
    other = cluster.running(3_000, id="other")
    cluster.submit(5_000, id="behind", tenant="vision")
    assert [grant.allocation_id for grant in grow(cluster, first, growth=2).grants] == ["behind"]
    waiting = cluster.ledger.get("first")
    assert (waiting.state, waiting.gpu_memory_mb, waiting.queue_position) == (State.WAITING, 10_000, 1)
    assert (waiting.submitted_at, waiting.node, waiting.token) == (first.submitted_at, None, 0)
    cluster.submit(10_000, id="later")
    assert [a.allocation_id for a in cluster.ledger.queue()] == ["first", "later"]
    cluster.ends("behind")
    assert cluster.ends(other.allocation_id) == ["first"]


def test_only_the_live_grant_of_what_runs_on_a_gpu_grows(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    by_hand = cluster.by_hand(1_000, id="hand").allocation
    assert grow(cluster, by_hand).reason == "not_running", "whoever holds it sees to that"
    on_cpu, granted = cluster.running(0, 1), cluster.submit(1_000).allocation
    assert grow(cluster, on_cpu).reason == "no_gpu"
    assert grow(cluster, granted).reason == "not_running"
    running = cluster.start(granted)
    assert grow(cluster, running).done
    assert grow(cluster, running).reason == "stale", "the reply to the first call was lost"
    cluster.ledger.release("a2", None)
    assert grow(cluster, running).reason == "gone"
    assert cluster.ledger.get(on_cpu.allocation_id) == on_cpu


@pytest.mark.parametrize("publishes", [True, False])
def test_grants_that_the_caller_cannot_publish_are_the_next_ticks(cluster: LedgerPool, publishes: bool) -> None:
    cluster.node(gpus=(10_000,))
    running = cluster.running(1_000)
    cluster.ledger.grow("a1", running.token, 1.5, 2, publishes=publishes)
    assert cluster.ticks() == ([] if publishes else ["a1"])


def test_a_share_asks_for_more_than_it_came_to(cluster: LedgerPool) -> None:
    """A quarter of what it is placed on, and so many MB at least."""
    cluster.node(gpus=(8_000, 16_000))
    held = cluster.running(0, share=0.25)
    assert held.gpu_memory_mb == 2_000
    assert grow(cluster, held).to_mb == 3_000
    again = cluster.start(cluster.ledger.get("a1"), nonce="again")
    assert (again.requirements.gpu, again.requirements.gpu_memory_mb, again.gpu_memory_mb) == (0.25, 3_000, 3_000)
    # Back in line for another reason, it still asks for as much.
    cluster.ledger.release("a1", again.token, "requeue")
    assert cluster.ledger.get("a1").gpu_memory_mb == 3_000


def test_who_has_a_whole_gpu_asks_for_a_larger_one(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 16_000))
    held = cluster.running(0, share=1.0)
    assert held.gpu_memory_mb == 8_000
    assert grow(cluster, held, growth=4).to_mb == 16_000
    again = cluster.start(cluster.ledger.get("a1"), nonce="again")
    assert (again.device_id, again.gpu_memory_mb) == ("gpu_1", 16_000)
    assert grow(cluster, again).reason == "largest"


def test_of_several_gpus_each_gives_more(cluster: LedgerPool) -> None:
    """As many of one node have to have it."""
    cluster.node("n1", gpus=(8_000, 8_000))
    cluster.node("n2", gpus=(40_000,))
    held = cluster.running(6_000, gpu_count=2)
    assert grow(cluster, held).to_mb == 8_000
    again = cluster.start(cluster.ledger.get("a1"), nonce="again")
    assert (again.gpu_ids, cluster.device("n1/gpu_1").memory_free_mb) == (("gpu_0", "gpu_1"), 0)
    assert grow(cluster, again).reason == "largest"
