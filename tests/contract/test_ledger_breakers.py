"""A task name with a breaker: granted as often as that says, set aside beyond it, and in nobody's way."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_allocator.errors import LedgerError
from celery_allocator.ledger import Note
from celery_allocator.ledger.keys import key
from celery_allocator.model import Kind, Requirements, State
from tests.support.ledger_checks import assert_empty, idle_beside_waiting
from tests.support.ledger_pool import LedgerPool


def states(cluster: LedgerPool, *names: str) -> list[str]:
    return [cluster.ledger.get(name).state.value for name in names]


def aside(cluster: LedgerPool) -> list[str]:
    return [a.allocation_id for a in cluster.ledger.on_hold() if a.on_hold_by == "breaker"]


def test_with_an_open_breaker_nothing_of_that_name_is_granted_and_all_else_is(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.ledger.set_breaker("bad", 0)
    submitted = cluster.submit(4_000, id="b1", task_name="bad")
    assert (submitted.allocation.state, submitted.allocation.on_hold_by) == (State.ON_HOLD, "breaker")
    cluster.submit(4_000, id="g1", task_name="good")  # of the same shape
    cluster.submit(4_000, id="b2", task_name="bad")
    assert states(cluster, "b1", "g1", "b2") == ["on_hold", "granted", "on_hold"]
    assert aside(cluster) == ["b1", "b2"]
    (breaker,) = cluster.ledger.breakers()
    assert (breaker.name, breaker.allows, breaker.aside) == ("bad", 0, 2)


def test_what_waits_is_set_aside_when_its_turn_comes(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.running(10_000, id="holder")
    cluster.submit(10_000, id="b1", task_name="bad", priority=5)
    cluster.submit(10_000, id="g1", task_name="good")
    cluster.ledger.set_breaker("bad", 0)
    assert states(cluster, "b1", "g1") == ["waiting", "waiting"]
    assert [g.allocation_id for g in cluster.ledger.release("holder").grants] == ["g1"]
    assert aside(cluster) == ["b1"]
    ledger = cluster.ledger
    assert idle_beside_waiting(ledger.snapshot(), ledger.queue(), frozenset()) == []


def test_a_delayed_one_is_set_aside_when_its_time_comes(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.set_breaker("bad", 0)
    cluster.submit(1_000, id="b1", task_name="bad", eta_at=cluster.at + 5)
    cluster.at += 6
    cluster.ledger.tick()
    assert aside(cluster) == ["b1"]


def test_a_half_open_breaker_lets_so_many_pass_the_oldest_first(cluster: LedgerPool) -> None:
    cluster.node(slots=8)
    cluster.ledger.set_breaker("bad", 0)
    names = [f"b{n}" for n in range(5)]
    for n, name in enumerate(names):
        cluster.submit(1_000, id=name, task_name="bad", priority=n % 2)
    operated, left = cluster.ledger.set_breaker("bad", 2)
    assert [grant.allocation_id for grant in operated.grants] == ["b1", "b3"]  # by priority, then arrival
    assert left == 3
    assert cluster.ledger.breakers()[0].allows == 0
    assert cluster.submit(1_000, id="b9", task_name="bad").allocation.state is State.ON_HOLD
    operated, left = cluster.ledger.set_breaker("bad", None, batch=3)
    assert ([grant.allocation_id for grant in operated.grants], left) == (["b0", "b2", "b4"], 1)
    (closing,) = cluster.ledger.breakers()
    assert (closing.allows, closing.aside) == (None, 1)
    assert cluster.submit(1_000, id="new", task_name="bad").allocation.state is State.GRANTED
    assert [grant.allocation_id for grant in cluster.ledger.tick().grants] == ["b9"]  # the rest goes with the ticks
    assert cluster.ledger.breakers() == ()
    for name in (*names, "b9", "new"):
        cluster.ledger.release(name)
    assert_empty(cluster.ledger)


def test_probes_that_do_not_fit_wait_and_count_when_they_are_granted(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.running(10_000, id="holder")
    cluster.ledger.set_breaker("bad", 0)
    for n in range(3):
        cluster.submit(10_000, id=f"b{n}", task_name="bad")
    _, left = cluster.ledger.set_breaker("bad", 1)
    assert left == 0  # none was set aside: nothing had room
    assert [g.allocation_id for g in cluster.ledger.release("holder").grants] == ["b0"]
    cluster.ledger.release("b0")
    assert (states(cluster, "b1", "b2"), cluster.ledger.breakers()[0].allows) == (["on_hold", "on_hold"], 0)


def test_allocations_by_hand_have_no_breaker(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.set_breaker("rendering", 0)
    need = Requirements(cpu_cores=1)
    made = cluster.ledger.submit("m", "t", "rendering", need, kind=Kind.MANUAL, ttl_s=50.0)
    assert made.allocation.state is State.RUNNING


@pytest.mark.parametrize("way", ["cancel", "expire", "unhold", "park"])
def test_what_was_set_aside_can_leave_in_every_way(cluster: LedgerPool, way: str) -> None:
    cluster.node()
    cluster.ledger.set_breaker("bad", 0)
    cluster.submit(1_000, id="b", task_name="bad", expires_at=cluster.at + 5)
    if way == "cancel":
        assert cluster.ledger.cancel("b").done
    elif way == "expire":
        cluster.at += 6
        cluster.ledger.tick()
    elif way == "park":
        cluster.ledger.park("b", "no JSON")
    else:
        cluster.ledger.unhold("b")  # its turn comes at once, and it is set aside again
        assert aside(cluster) == ["b"]
        cluster.ledger.set_breaker("bad", None)
        assert states(cluster, "b") == ["granted"]
    assert cluster.ledger.breakers() == () if way == "unhold" else cluster.ledger.breakers()[0].aside == 0
    assert cluster.ledger.verify() == []


def test_a_lost_index_of_what_is_set_aside_is_rebuilt(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.set_breaker("bad", 0)
    cluster.submit(1_000, id="b", task_name="bad")
    cluster.ledger.client.delete(f"{{allocator:{cluster.ledger.pool}}}:aside:bad")
    assert cluster.ledger.verify() == ["b (on_hold) is not set aside"]
    assert cluster.ledger.repair().left == ()
    assert cluster.ledger.breakers()[0].aside == 1


def test_a_breaker_set_by_an_operator_is_journalled_with_what_it_was(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.set_breaker("bad", 3, '{"phase": "half-open"}')
    operated, _ = cluster.ledger.set_breaker("bad", None, note=Note("close-breaker", {"name": "bad"}, "ada"))
    entry = cluster.ledger.entry(operated.entry or 0)
    assert entry.objects == ("breaker:bad",)
    assert entry.before == {"allows": "3", "memory": '{"phase": "half-open"}'}


def test_many_at_once_never_take_more_than_the_breaker_lets_pass(cluster: LedgerPool) -> None:
    """Twenty submit at the same time, five may pass: five do."""
    cluster.node(gpus=(100_000,), cores=64, slots=32)
    cluster.ledger.set_breaker("bad", 5)
    barrier = threading.Barrier(20)

    def submit(n: int) -> None:
        barrier.wait()
        cluster.submit(1_000, id=f"b{n}", task_name="bad")

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cluster.ledger.snapshot().granted, len(aside(cluster))) == (5, 15)


def test_a_damaged_breaker_stops_nothing_and_repair_lets_go_what_it_set_aside(cluster: LedgerPool) -> None:
    cluster.node(slots=8)
    cluster.ledger.set_breaker("bad", 0)
    cluster.submit(1_000, id="b1", task_name="bad")
    client: Any = cluster.ledger.client
    client.hset(key(cluster.ledger.pool, "breakers"), "bad", "many")
    assert cluster.ledger.tick().grants == ()
    (told,) = cluster.ledger.verify()
    assert told == "the breaker of bad holds many: that is no number"
    with pytest.raises(LedgerError, match="the record of a breaker in the ledger is damaged"):
        cluster.ledger.breakers()
    assert cluster.ledger.repair().left == ()
    assert [grant.allocation_id for grant in cluster.ledger.tick().grants] == ["b1"]
    assert (cluster.ledger.breakers(), cluster.ledger.verify()) == ((), [])
