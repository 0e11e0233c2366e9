"""What an undo finds changed: devices that shrank or went, workers, the server itself, and whoever came in between."""

from __future__ import annotations

from typing import Any

import pytest

from celery_allocator.errors import ActionRefused, LabelError, LedgerError
from celery_allocator.ledger import Claim, Note, keys
from celery_allocator.model import State
from celery_allocator.operations import Actor, Hold, Operator, Release, Unhold
from tests.contract.test_ledger_epoch import change_server, forget
from tests.support.ledger_pool import LEASE_S, LedgerPool


def note(action: str = "test", **changes: Any) -> Note:
    return Note(action, {}, "ada", "why not", "test", **changes)


def ended(cluster: LedgerPool, name: str) -> int:
    """Cancel ``name``, which holds or waits; the journal entry."""
    reply = cluster.ledger.cancel(name, note=note("cancel"))
    assert reply.entry is not None
    return reply.entry


def back(cluster: LedgerPool, name: str, entry: int) -> str:
    return cluster.ledger.restore(name, note=note("cancel", way="undo", of=entry)).becomes


def operator(cluster: LedgerPool, **changes: str) -> Operator:
    return Operator(cluster.ledger, Actor("ada", "test", **changes), lambda _: None)


# --- the place


def test_a_place_on_a_device_that_is_gone_or_shrank(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000), slots=None)
    mine = cluster.by_hand(8_000, 1, id="mine").allocation
    entry = ended(cluster, "mine")
    cluster.node(gpus=(4_000, 4_000), slots=None)
    with pytest.raises(ActionRefused, match="place of mine on n1/gpu_0 is not there any more"):
        back(cluster, "mine", entry)
    cluster.node(gpus=(), slots=None)
    with pytest.raises(ActionRefused, match="n1/gpu_0 is offline"):
        back(cluster, "mine", entry)
    cluster.node(gpus=(10_000, 10_000), slots=None)
    assert back(cluster, "mine", entry) == "running"
    assert cluster.ledger.get("mine").device_id == mine.device_id


def test_a_task_whose_device_is_gone_shrank_or_has_no_free_slot_goes_into_line(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), slots=1)
    cluster.submit(8_000, 1, id="task")
    entry = ended(cluster, "task")
    cluster.running(1_000, 1, id="other")  # the only slot
    assert back(cluster, "task", entry) == "waiting"
    entry = ended(cluster, "task")
    cluster.ledger.release("other")
    cluster.node(gpus=(4_000,), slots=1)
    assert back(cluster, "task", entry) == "waiting"
    entry = ended(cluster, "task")
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    cluster.node(gpus=(), slots=None)
    assert back(cluster, "task", entry) == "waiting"


def test_a_place_whose_cores_are_not_the_nodes_any_more(cluster: LedgerPool) -> None:
    cluster.node(cores=4)
    cluster.by_hand(1_000, 2, id="mine")
    cluster.submit(1_000, 2, id="task")
    entries = {name: ended(cluster, name) for name in ("mine", "task")}
    cluster.node(cores=(1, 2, 3))
    with pytest.raises(ActionRefused, match="not there any more"):
        back(cluster, "mine", entries["mine"])
    assert back(cluster, "task", entries["task"]) == "granted"  # on the cores that it had
    cluster.node(cores=4)
    assert back(cluster, "mine", entries["mine"]) == "running"


def test_who_holds_the_place_is_told_and_nobody_else(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000), cores=6)
    mine = cluster.by_hand(1_000, 2, id="mine").allocation
    entry = ended(cluster, "mine")
    cluster.by_hand(1_000, 2, id="on-its-cores")
    cluster.by_hand(9_500, 1, id="beside")
    assert cluster.ledger.get("on-its-cores").cpu_cores == mine.cpu_cores
    with pytest.raises(ActionRefused, match=r"is taken: it is held by on-its-cores$"):
        back(cluster, "mine", entry)


def test_an_unstarted_task_does_not_come_back_to_a_device_that_is_emptied(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.submit(1_000, id="a")
    entry = ended(cluster, "a")
    cluster.ledger.set_state("n1/gpu_0", "draining")
    assert back(cluster, "a", entry) == "waiting"
    entry = ended(cluster, "a")
    cluster.ledger.set_state("n1/gpu_0", "cordoned")
    assert back(cluster, "a", entry) == "waiting"
    assert [grant.allocation_id for grant in cluster.ledger.uncordon("n1/gpu_0")] == ["a"]


def test_nothing_is_restored_over_what_a_changed_server_may_not_know(cluster: LedgerPool) -> None:
    """As with a grant: a worker may run there what the ledger has not been told of again."""
    cluster.node(gpus=(10_000,), slots=2)
    cluster.by_hand(6_000, 1, id="mine")
    cluster.submit(1_000, 1, id="task")
    entries = {name: ended(cluster, name) for name in ("mine", "task")}
    running = cluster.running(8_000, 2)
    forget(cluster, running)  # as if its grant had been lost with the old server
    change_server(cluster)
    cluster.ledger.tick()
    with pytest.raises(ActionRefused, match="the server has changed"):
        back(cluster, "mine", entries["mine"])
    assert back(cluster, "task", entries["task"]) == "waiting"
    assert cluster.ledger.reclaim(running, "w.n1.gpu_0", message=b"m")[0] is Claim.STANDS
    assert cluster.ledger.get(running.allocation_id).state is State.RUNNING


def test_the_host_of_what_comes_back_is_offered_for_as_long_as_it_lives(cluster: LedgerPool) -> None:
    """A node without workers is let go with the last allocation by hand on it."""
    cluster.node(slots=None, lease_s=30)
    cluster.by_hand(1_000, 1, id="mine", ttl_s=30)
    entry = ended(cluster, "mine")
    back(cluster, "mine", entry)
    cluster.at += 1
    cluster.ledger.tick()
    assert cluster.ledger.snapshot().nodes[0].state == "ready"
    assert cluster.ledger.get("mine").state is State.RUNNING


# --- whose it is


def test_a_tasks_allocation_is_not_released_by_an_operator(cluster: LedgerPool) -> None:
    """Undone, a task that runs would be granted and run a second time."""
    cluster.node()
    running = cluster.running(1_000)
    with pytest.raises(ActionRefused, match="its worker releases it"):
        operator(cluster).run(Release(running.allocation_id))
    with pytest.raises(ActionRefused, match="its worker releases it"):
        cluster.ledger.release(running.allocation_id, note=note("release"))
    (waiting,) = [cluster.submit(10_000).allocation]
    with pytest.raises(ActionRefused, match="its worker releases it"):
        operator(cluster).run(Release(waiting.allocation_id))
    assert cluster.ledger.journal() == ()
    for outcome in ("requeue", "lost"):
        with pytest.raises(ValueError, match="that is for tasks"):
            Release("a", outcome=outcome)


def test_what_a_worker_reclaims_is_on_hold_no_more_and_what_it_cannot_is_so_still(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    runs = [cluster.running(10_000, 1, id=name, repeatable=True) for name in ("one", "two")]
    cluster.at += LEASE_S - 1
    cluster.ledger.heartbeat("w.n1.cpu", "one", LEASE_S)
    cluster.at += 2
    cluster.ledger.tick()  # both workers are thought dead
    for run in runs:
        assert cluster.ledger.hold(run.allocation_id).was == "waiting"
    theirs = cluster.by_hand(10_000, 1, id="theirs").allocation
    for run in runs:
        verdict, _ = cluster.ledger.reclaim(run, f"w.n1.{run.device_id}", repeatable=True)
        now = cluster.ledger.get(run.allocation_id)
        if run.device_id == theirs.device_id:
            assert (verdict, now.state, now.on_hold_by) == (Claim.STALE, State.ON_HOLD, "operator")
        else:
            assert (verdict, now.state, now.on_hold_by) == (Claim.STANDS, State.RUNNING, None)


def test_unhold_of_what_a_breaker_set_aside_is_undone_to_the_breaker(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.set_breaker("bad", 0)
    cluster.submit(1_000, id="b", task_name="bad", priority=1)
    cluster.submit(1_000, id="c", task_name="bad")
    chief = operator(cluster)
    cluster.ledger.pause(stop=True)
    chief.run(Unhold("b"))
    assert cluster.ledger.get("b").state is State.WAITING
    chief.undo()
    assert cluster.ledger.get("b").on_hold_by == "breaker"
    cluster.ledger.prioritize("c", 5)
    cluster.ledger.pause(stop=False)
    grants = cluster.ledger.set_breaker("bad", 1)[0].grants
    assert [grant.allocation_id for grant in grants] == ["c"], "priority counts among what is set aside"
    chief.run(Hold(cluster.submit(10_000, id="w").allocation.allocation_id))
    chief.undo()
    assert cluster.ledger.get("w").state is State.WAITING


def test_what_is_no_state_is_refused(cluster: LedgerPool) -> None:
    cluster.node()
    for state in ("restore", "offline", {"n1": "nonsense"}, {"n1": None}):
        with pytest.raises(LabelError, match="must be one of ready, cordoned, draining"):
            cluster.ledger.set_state("n1", state)


def test_a_record_that_is_missing_stops_no_drain(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(1_000, id="a")
    record = keys.key(cluster.ledger.pool, "alloc", "a")
    saved = cluster.ledger.client.dump(record)
    cluster.ledger.client.delete(record)
    cluster.ledger.set_state("n1", "draining", note=note("drain"))
    assert {d.state for d in cluster.ledger.snapshot().devices} == {"draining"}
    cluster.ledger.client.restore(record, 0, saved)


# --- the record that the entry keeps


def test_a_record_that_cannot_be_read_names_its_entry(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(10_000, id="holder")
    cluster.submit(10_000, id="a")
    entry = ended(cluster, "a")
    for payload in (b"\xff nonsense", b"\x01", b"\x90", b"\x92\xa1a\xa1b", b""):
        cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "entry", str(entry)), "payload", payload)
        with pytest.raises(LedgerError, match=f"journal entry {entry} .*is damaged"):
            back(cluster, "a", entry)


# --- the same task twice


def test_a_cancelled_retry_comes_back_beside_the_run_that_it_follows(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.running(10_000, id="run", task_id="task")
    cluster.submit(10_000, id="retry", task_id="task")
    entry = ended(cluster, "retry")
    assert [a.allocation_id for a in cluster.ledger.find("task")] == ["run"]
    back(cluster, "retry", entry)
    assert [a.allocation_id for a in cluster.ledger.find("task")] == ["run", "retry"]
    assert [grant.allocation_id for grant in cluster.ledger.release("run").grants] == ["retry"]


def test_what_is_on_hold_or_comes_back_counts_among_what_waits(cluster: LedgerPool) -> None:
    cluster.ledger.options = type(cluster.ledger.options)(max_waiting=2)
    cluster.node(gpus=(10_000,))
    cluster.running(10_000)
    for name in ("a", "b"):
        cluster.submit(10_000, id=name)
        cluster.ledger.hold(name)
    with pytest.raises(Exception, match="2"):
        cluster.submit(10_000, id="c")
    entry = ended(cluster, "a")
    cluster.submit(10_000, id="c")
    assert back(cluster, "a", entry) == "on_hold", "what was accepted once is not refused"
