"""Nodes that change, workers that come, close, leave and die, operators that cordon, and the tick that notices."""

from __future__ import annotations

import pytest

from celery_allocator.errors import DeviceBusyError, StaleTokenError, UnknownTargetError, UnsatisfiableError
from celery_allocator.model import State, Strategy
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool

# --- capacity that changes


def test_registering_a_node_again_changes_nothing(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(2_000, 2, 4_000)
    before, events = cluster.ledger.snapshot(), cluster.happened()
    cluster.node(slots=None)
    assert cluster.ledger.snapshot() == before
    assert cluster.happened() == events


def test_a_device_that_shrank_under_what_is_held_takes_nothing_from_the_others(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    cluster.submit(10_000, strategy=Strategy.FIRST_FIT)
    cluster.node(gpus=(4_000, 10_000), slots=None)
    assert cluster.device("n1/gpu_0").memory_free_mb == -6_000
    assert cluster.submit(10_000).allocation.place == "n1/gpu_1"
    assert_right(cluster.ledger)


def test_capacity_may_shrink_under_what_is_held(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8, ram=10_000)
    first = cluster.submit(8_000, 6, 8_000).allocation
    cluster.node(gpus=(4_000,), cores=(0, 1, 7), ram=2_000, slots=None)
    node = cluster.ledger.node("n1")
    assert node is not None
    assert (node.ram_free_mb, node.cpu_cores_free, node.devices[0].memory_free_mb) == (-6_000, (7,), -4_000)
    assert cluster.submit(1_000).allocation.state is State.WAITING
    released = cluster.ledger.release(first.allocation_id, first.token)
    assert [grant.allocation_id for grant in released.grants] == ["a2"]
    node = cluster.ledger.node("n1")
    assert node is not None
    assert (node.cpu_cores, node.cpu_cores_free) == ((0, 1, 7), (1, 7))
    cluster.ledger.release("a2")
    assert_empty(cluster.ledger)


def test_a_core_that_comes_back_while_held_stays_held(cluster: LedgerPool) -> None:
    cluster.node(cores=4)
    held = cluster.submit(100, 4).allocation
    cluster.node(cores=2, slots=None)
    cluster.node(cores=4, slots=None)
    assert cluster.submit(100, 1).allocation.state is State.WAITING
    cluster.ledger.release(held.allocation_id)
    assert cluster.ledger.get("a2").cpu_cores == (0,)


def test_capacity_that_grows_is_granted(cluster: LedgerPool) -> None:
    cluster.node(gpus=(4_000,), cores=2)
    cluster.submit(6_000, on_never="wait")
    cluster.submit(1_000, 4, on_never="wait")
    grants = cluster.node(gpus=(8_000,), cores=8, slots=None)
    assert [grant.allocation_id for grant in grants] == ["a1", "a2"]


def test_a_device_that_is_listed_no_more_goes_offline_unless_it_is_served(cluster: LedgerPool) -> None:
    cluster.node(gpus=(4_000, 8_000))
    cluster.node(gpus=(4_000,), slots=None)
    assert cluster.device("n1/gpu_1").state == "ready"
    cluster.ledger.unregister_worker("w.n1.gpu_1", "one")
    cluster.node(gpus=(4_000,), slots=None)
    assert cluster.device("n1/gpu_1").state == "offline"
    with pytest.raises(UnsatisfiableError):
        cluster.submit(8_000)
    cluster.worker("n1", "gpu_1")
    assert cluster.submit(8_000).allocation.device_id == "gpu_1"
    assert cluster.submit(8_000).allocation.state is State.WAITING  # it counts as known again


# --- workers


def test_one_worker_per_device(cluster: LedgerPool) -> None:
    cluster.node()
    with pytest.raises(DeviceBusyError) as caught:
        cluster.worker("n1", "gpu_0", "two", name="another", pid=11, born="boot:1")
    assert (caught.value.holder, caught.value.incarnation, caught.value.node) == ("w.n1.gpu_0", "one", "n1")
    assert caught.value.lease_left_s == 60
    with pytest.raises(UnknownTargetError):
        cluster.worker("n1", "gpu_9")


def test_a_namesake_with_a_live_lease_is_in_the_way_on_another_device_too(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000))
    cluster.ledger.unregister_worker("w.n1.gpu_1", "one")
    with pytest.raises(DeviceBusyError):
        cluster.worker("n1", "gpu_1", "two", name="w.n1.gpu_0")


def test_takeover_does_not_wait_for_the_lease(cluster: LedgerPool) -> None:
    cluster.node()
    lost = cluster.running(2_000, repeatable=True)
    cluster.submit(2_000)
    grants = cluster.worker("n1", "gpu_0", "two", takeover="one")
    assert [grant.allocation_id for grant in grants] == ["a1", "a2"]  # both anew, in their old order
    with pytest.raises(StaleTokenError):
        cluster.start(lost, nonce="delivery 2", incarnation="two")
    again = cluster.start(cluster.ledger.get("a1"), nonce="delivery 3", incarnation="two")
    assert (again.losses, again.token > lost.token) == (1, True)


def test_the_same_incarnation_again_keeps_what_it_runs(cluster: LedgerPool) -> None:
    """Its consumer restarted after a lost broker connection."""
    cluster.node(slots=2)
    cluster.running(2_000)
    assert cluster.worker("n1", "gpu_0", slots=2) == ()
    device = cluster.device("n1/gpu_0")
    assert (device.slots, device.slots_free) == (2, 1)
    assert cluster.ledger.get("a1").state is State.RUNNING


def test_the_same_incarnation_on_another_device_leaves_the_first(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000, 8_000))
    cluster.ledger.unregister_worker("w.n1.gpu_1", "one")
    cluster.worker("n1", "gpu_1", name="w.n1.gpu_0")
    assert cluster.device("n1/gpu_0").worker is None
    assert cluster.device("n1/gpu_1").worker == "w.n1.gpu_0"


def test_closing_withdraws_unstarted_grants_and_takes_no_more(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,))
    cluster.running(2_000)
    granted = cluster.submit(2_000).allocation
    cluster.node("n2", gpus=(10_000,))
    (grant,) = cluster.ledger.close_worker("w.n1.gpu_0", "one")
    assert (grant.allocation_id, grant.queue, grant.token > granted.token) == ("a2", "q.n2.gpu_0", True)
    assert cluster.ledger.get("a1").state is State.RUNNING
    assert cluster.submit(2_000).allocation.node == "n2"
    assert cluster.ledger.close_worker("w.n1.gpu_0", "another") == ()


def test_leaving_loses_what_it_runs(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(2_000)
    cluster.running(2_000, repeatable=True)
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    assert [a.allocation_id for a in cluster.ledger.queue()] == ["a2"]
    assert [(o.allocation_id, o.outcome) for o in cluster.ledger.tick().obituaries] == [("a1", "lost")]
    assert not cluster.ledger.heartbeat("w.n1.gpu_0", "one", 60)


def test_a_worker_that_dies_is_noticed_by_its_lease(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(2_000, repeatable=True)
    cluster.submit(2_000)
    cluster.at += 59
    assert cluster.ledger.heartbeat("w.n1.cpu", "one", 60)
    assert cluster.ledger.tick().lost_workers == ()
    cluster.at += 1
    assert cluster.ledger.tick().lost_workers == ("w.n1.gpu_0",)
    assert [a.allocation_id for a in cluster.ledger.queue()] == ["a1", "a2"]
    assert cluster.device("n1/gpu_0").slots == 0
    assert [g.allocation_id for g in cluster.worker("n1", "gpu_0", "two")] == ["a1", "a2"]


def test_a_task_that_loses_its_worker_too_often_is_given_up(cluster: LedgerPool) -> None:
    cluster.node(slots=None)
    cluster.submit(2_000)
    for incarnation in ("one", "two", "three"):  # two losses are forgiven, see conftest
        (grant,) = cluster.worker("n1", "gpu_0", incarnation)
        cluster.start(cluster.ledger.get(grant.allocation_id), repeatable=True, incarnation=incarnation)
        cluster.ledger.unregister_worker("w.n1.gpu_0", incarnation)
    (obituary,) = cluster.ledger.tick().obituaries
    assert (obituary.allocation_id, obituary.outcome, obituary.message) == ("a1", "lost", b"message of a1")
    cluster.ledger.settle(["a1"])
    assert_empty(cluster.ledger)


def test_a_node_whose_lease_ends_is_offline_until_it_is_back(cluster: LedgerPool) -> None:
    cluster.node(slots=None)
    assert cluster.by_hand(2_000, ttl_s=600).allocation.state is State.RUNNING
    cluster.at += 60
    cluster.ledger.tick()
    assert cluster.ledger.snapshot().nodes[0].state == "offline"
    assert cluster.by_hand(2_000).allocation.state is State.WAITING
    cluster.node(slots=None)
    assert cluster.ledger.get("a2").state is State.RUNNING


def test_what_a_node_offers_counts_again_once_its_worker_is_back(cluster: LedgerPool) -> None:
    """Though it is the worker alone that tells of it: shares of tenants are of what there is."""
    cluster.node(gpus=(10_000,))
    cluster.at += 60
    cluster.ledger.tick()
    assert cluster.ledger.verify() == []
    cluster.worker("n1", "gpu_0")
    cluster.submit(5_000, tenant="t")
    assert [tenant.share for tenant in cluster.ledger.tenants()] == [0.5]


# --- operators


def test_cordon_stops_grants_and_leaves_what_is_there(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(1_000)
    cluster.submit(1_000)
    grants, held = cluster.ledger.cordon("n1/gpu_0")
    assert (grants, set(held)) == ((), {"a1", "a2"})
    assert cluster.submit(1_000).allocation.state is State.WAITING
    assert cluster.submit(0, 1).allocation.state is State.GRANTED  # the node's other devices go on
    assert [g.allocation_id for g in cluster.ledger.uncordon("n1/gpu_0")] == ["a3"]


def test_drain_sends_unstarted_grants_elsewhere(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,))
    cluster.running(1_000)
    cluster.submit(1_000)
    cluster.node("n2", gpus=(10_000,))
    grants, running = cluster.ledger.cordon("n1", drain=True)
    assert ([(g.allocation_id, g.queue) for g in grants], running) == ([("a2", "q.n2.gpu_0")], ("a1",))
    assert cluster.ledger.snapshot().nodes[0].state == "draining"
    assert cluster.submit(0, 1).allocation.node == "n2"


def test_a_device_that_joins_a_cordoned_node_is_cordoned(cluster: LedgerPool) -> None:
    cluster.node(gpus=())
    cluster.ledger.cordon("n1")
    cluster.node(gpus=(8_000,))
    assert cluster.device("n1/gpu_0").state == "cordoned"


def test_an_unknown_target_is_told_with_the_known_ones(cluster: LedgerPool) -> None:
    cluster.node()
    for target in ("n2", "n1/gpu_7"):
        with pytest.raises(UnknownTargetError, match="n1/gpu_0"):
            cluster.ledger.cordon(target)


# --- tick


def test_a_delayed_task_comes_into_line_when_due(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000,))
    cluster.submit(8_000, eta_at=cluster.at + 10)
    cluster.running(8_000)
    assert [a.allocation_id for a in cluster.ledger.delayed()] == ["a1"]
    cluster.at += 10
    assert cluster.ledger.tick().grants == ()
    assert [a.allocation_id for a in cluster.ledger.queue()] == ["a1"]
    assert [g.allocation_id for g in cluster.ledger.release("a2").grants] == ["a1"]


def test_delayed_tasks_come_due_in_the_order_of_their_eta(cluster: LedgerPool) -> None:
    cluster.node(gpus=(8_000,))
    cluster.submit(8_000, eta_at=cluster.at + 10)
    cluster.submit(8_000, eta_at=cluster.at + 5)
    cluster.at += 20
    assert [g.allocation_id for g in cluster.ledger.tick().grants] == ["a2"]


@pytest.mark.parametrize("state", ["delayed", "waiting", "granted"])
def test_what_has_not_started_expires(cluster: LedgerPool, state: str) -> None:
    cluster.node(gpus=(8_000,))
    if state == "waiting":
        cluster.running(8_000, id="holder")
    cluster.submit(8_000, id="mine", expires_at=cluster.at + 5, eta_at=cluster.at + 9 if state == "delayed" else None)
    cluster.submit(8_000, id="next")
    cluster.at += 5
    ticked = cluster.ledger.tick()
    assert [(o.allocation_id, o.outcome) for o in ticked.obituaries] == [("mine", "expired")]
    assert [g.allocation_id for g in ticked.grants] == (["next"] if state == "granted" else [])


def test_what_runs_does_not_expire(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(1_000, expires_at=cluster.at + 5)
    cluster.at += 5
    assert cluster.ledger.tick().obituaries == ()
    assert cluster.ledger.get("a1").state is State.RUNNING


def test_a_grant_that_has_not_started_is_published_again_under_its_token(cluster: LedgerPool) -> None:
    cluster.node()
    granted = cluster.submit(1_000).allocation
    for _ in range(2):
        cluster.at += 9.999
        assert cluster.ledger.tick().grants == ()
        cluster.at += 0.001
        (grant,) = cluster.ledger.tick().grants
        assert (grant.allocation_id, grant.token, grant.message) == ("a1", granted.token, b"message of a1")
    cluster.start(granted)
    cluster.at += 10
    assert cluster.ledger.tick().grants == ()


def test_who_cannot_publish_leaves_it_to_the_next_tick(cluster: LedgerPool) -> None:
    """A grant made for a caller without a broker is due at once, not after the start deadline."""
    cluster.node(gpus=(8_000,))
    for _ in range(4):
        cluster.submit(8_000)
    cluster.ledger.release("a1", publishes=False)
    assert [g.allocation_id for g in cluster.ledger.tick().grants] == ["a2"]
    assert cluster.ledger.tick().grants == ()
    cluster.ledger.cancel("a2", publishes=False)
    quiet = cluster.ledger.tick(publishes=False)
    assert (quiet.grants, quiet.obituaries) == ((), ())
    loud = cluster.ledger.tick()
    assert ([g.allocation_id for g in loud.grants], [o.allocation_id for o in loud.obituaries]) == (["a3"], ["a2"])


def test_one_tick_at_a_time(cluster: LedgerPool) -> None:
    cluster.node()
    assert cluster.ledger.tick(lock_s=60).ran
    assert not cluster.ledger.tick(lock_s=60).ran
    assert cluster.ledger.tick().ran  # without the lock, whenever it is asked for
