"""Hold, priority, pause, restore, and the journal that they are written in."""

from __future__ import annotations

from typing import Any

import pytest

from celery_allocator.errors import ActionRefused, AllocationNotFound, DuplicateAction, EntryNotFound, JournalMoved
from celery_allocator.ledger import Note
from celery_allocator.model import Requirements, State
from celery_allocator.operations import Actor, Cordon, Drain, Operator
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool


def note(action: str = "test", **changes: Any) -> Note:
    return Note(action, {}, "ada", **{"reason": "why not", "source": "test", **changes})


def waiting(cluster: LedgerPool, count: int = 3) -> list[str]:
    """A holder that fills the device (``holder``), and so many that wait for it."""
    cluster.running(10_000, 1, id="holder")
    return [cluster.submit(10_000, 1).allocation.allocation_id for _ in range(count)]


def line(cluster: LedgerPool) -> list[str]:
    return [allocation.allocation_id for allocation in cluster.ledger.queue()]


# --- why a device is cordoned


def reasons(cluster: LedgerPool) -> dict[str, tuple[str, str]]:
    return {device.device_id: (device.state, device.reason) for device in cluster.ledger.snapshot().devices}


def test_a_device_keeps_why_it_was_cordoned_until_it_is_ready_again(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    cluster.ledger.set_state("n1/gpu_0", "draining", note=note(reason="bad fan"))
    assert reasons(cluster) == {"gpu_0": ("draining", "bad fan"), "gpu_1": ("ready", ""), "cpu": ("ready", "")}
    cluster.node(gpus=(10_000, 10_000))  # it comes again
    cluster.ledger.set_state("n1", "cordoned", note=note(reason="new rack"))
    assert reasons(cluster) == dict.fromkeys(("gpu_0", "gpu_1", "cpu"), ("cordoned", "new rack"))
    cluster.ledger.set_state("n1", "draining")  # nobody says why
    assert reasons(cluster) == dict.fromkeys(("gpu_0", "gpu_1", "cpu"), ("draining", ""))
    cluster.ledger.set_state("n1/gpu_1", "cordoned", note=note(reason="slow"))
    cluster.ledger.uncordon("n1/gpu_1")
    assert reasons(cluster)["gpu_1"] == ("ready", "")


def test_why_it_was_cordoned_comes_back_with_undo_and_redo(cluster: LedgerPool) -> None:
    cluster.node()
    ada = Operator(cluster.ledger, Actor("ada", reason="bad fan"))
    ada.run(Drain("n1/gpu_0"))
    entry = Operator(cluster.ledger, Actor("bob", reason="all of it")).run(Cordon("n1")).entry
    assert reasons(cluster) == dict.fromkeys(("gpu_0", "cpu"), ("cordoned", "all of it"))
    ada.undo(entry)
    assert reasons(cluster) == {"gpu_0": ("draining", "bad fan"), "cpu": ("ready", "")}
    ada.redo(entry)
    assert reasons(cluster) == dict.fromkeys(("gpu_0", "cpu"), ("cordoned", "all of it"))
    assert_right(cluster.ledger)


# --- hold


def test_what_is_on_hold_keeps_its_place_and_is_passed_over(cluster: LedgerPool) -> None:
    cluster.node()
    first, second, third = waiting(cluster)
    assert cluster.ledger.hold(first).was == "waiting"
    assert line(cluster) == [second, third]
    held = cluster.ledger.get(first)
    assert (held.state, held.on_hold_by, held.queue_position) == (State.ON_HOLD, "operator", 0)
    assert [a.allocation_id for a in cluster.ledger.on_hold()] == [first]
    assert cluster.ledger.snapshot().on_hold == 1
    assert [g.allocation_id for g in cluster.ledger.release("holder").grants] == [second]
    cluster.ledger.unhold(first)
    assert line(cluster) == [first, third]
    assert cluster.ledger.get(first).on_hold_by is None


def test_unhold_grants_what_fits(cluster: LedgerPool) -> None:
    cluster.node()
    (only,) = waiting(cluster, 1)
    cluster.ledger.hold(only)
    cluster.ledger.release("holder")
    assert [grant.allocation_id for grant in cluster.ledger.unhold(only).grants] == [only]


def test_a_delayed_one_is_delayed_again_or_in_line_where_its_time_has_come(cluster: LedgerPool) -> None:
    cluster.node()
    waiting(cluster, 0)
    for name in ("early", "late"):
        cluster.submit(10_000, id=name, eta_at=cluster.at + 10)
        cluster.ledger.hold(name)
    cluster.ledger.unhold("early")
    assert cluster.ledger.get("early").state is State.DELAYED
    cluster.at += 11
    cluster.ledger.tick()
    assert [cluster.ledger.get(name).state for name in ("early", "late")] == [State.WAITING, State.ON_HOLD]
    cluster.ledger.unhold("late")
    assert cluster.ledger.get("late").state is State.WAITING


def test_expiry_and_ttl_go_on_while_on_hold(cluster: LedgerPool) -> None:
    cluster.node()
    waiting(cluster, 0)
    cluster.submit(10_000, id="task", expires_at=cluster.at + 5)
    cluster.by_hand(10_000, id="by-hand", ttl_s=5)
    for name in ("task", "by-hand"):
        cluster.ledger.hold(name)
    cluster.at += 6
    (obituary,) = cluster.ledger.tick().obituaries
    assert (obituary.allocation_id, obituary.outcome) == ("task", "expired")
    cluster.ledger.settle(["task"])
    cluster.ledger.release("holder")
    assert_empty(cluster.ledger)


@pytest.mark.parametrize("state", ["granted", "running", "on_hold"])
def test_only_what_waits_or_is_delayed_can_be_put_on_hold(cluster: LedgerPool, state: str) -> None:
    cluster.node()
    if state == "on_hold":
        (name,) = waiting(cluster, 1)
        cluster.ledger.hold(name)
    else:
        name = (cluster.submit if state == "granted" else cluster.running)(1_000, id="a")
        name = "a"
    with pytest.raises(ActionRefused, match=f"{name} is {state.replace('_', ' ')}"):
        cluster.ledger.hold(name)


def test_hold_and_unhold_of_what_is_not_there(cluster: LedgerPool) -> None:
    cluster.node()
    for call in (cluster.ledger.hold, cluster.ledger.unhold):
        with pytest.raises(AllocationNotFound):
            call("never was")
    (name,) = waiting(cluster, 1)
    with pytest.raises(ActionRefused, match="is not on hold: it is waiting"):
        cluster.ledger.unhold(name)


def test_what_is_on_hold_can_be_cancelled_parked_and_repaired(cluster: LedgerPool) -> None:
    cluster.node()
    first, second, third = waiting(cluster)
    for name in (first, second, third):
        cluster.ledger.hold(name)
    assert cluster.ledger.cancel(first).state == "on_hold"
    cluster.ledger.park(second, "no JSON")
    cluster.ledger.client.delete(f"{{allocator:{cluster.ledger.pool}}}:onhold")
    assert cluster.ledger.verify() == [f"{third} (on_hold) is not on hold"]
    assert cluster.ledger.repair().left == ()
    assert [a.allocation_id for a in cluster.ledger.on_hold()] == [third]


# --- priority


def test_priority_moves_within_the_line_and_keeps_the_arrival(cluster: LedgerPool) -> None:
    cluster.node()
    first, second, third = waiting(cluster)
    assert cluster.ledger.prioritize(third, 5).was == "0"
    assert line(cluster) == [third, first, second]
    cluster.ledger.prioritize(first, 5)
    assert line(cluster) == [first, third, second]
    cluster.ledger.prioritize(first, -1000)
    assert line(cluster) == [third, second, first]
    for name in (first, third):
        cluster.ledger.prioritize(name, 0)
    assert line(cluster) == [first, second, third]
    assert [g.allocation_id for g in cluster.ledger.release("holder").grants] == [first]


def test_priority_of_what_is_on_hold_or_delayed_counts_once_it_is_in_line(cluster: LedgerPool) -> None:
    cluster.node()
    first, second = waiting(cluster, 2)
    cluster.submit(10_000, id="later", eta_at=cluster.at + 5)
    cluster.ledger.hold(second)
    cluster.ledger.prioritize(second, 1)
    cluster.ledger.prioritize("later", 2)
    cluster.ledger.unhold(second)
    cluster.at += 6
    cluster.ledger.tick()
    assert line(cluster) == ["later", second, first]


def test_priority_of_what_is_granted_is_refused(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(1_000, id="a")
    with pytest.raises(ActionRefused, match="a is granted"):
        cluster.ledger.prioritize("a", 1)
    with pytest.raises(AllocationNotFound):
        cluster.ledger.prioritize("never was", 1)


# --- to the front


def test_the_front_is_before_the_first_and_a_priority_counts_from_the_arrival_again(cluster: LedgerPool) -> None:
    cluster.node()
    first, second, third = waiting(cluster)
    cluster.ledger.prioritize(first, 1000)
    assert cluster.ledger.front(third)[1:] == (3, 1)
    assert cluster.ledger.front(second)[1:] == (3, 1)
    assert line(cluster) == [second, third, first]
    assert cluster.ledger.front(second)[1:] == (1, 1), "it is the first already"
    assert cluster.ledger.verify() == []
    cluster.ledger.prioritize(first, 0)
    cluster.ledger.prioritize(third, 0)
    cluster.ledger.prioritize(second, 0)
    assert line(cluster) == [first, second, third], "as they came"
    cluster.ledger.front(third)
    urgent = cluster.submit(10_000, priority=1).allocation.allocation_id
    assert line(cluster) == [urgent, third, first, second], "who comes later with a larger priority passes"
    assert [g.allocation_id for g in cluster.ledger.release("holder").grants] == [urgent]


def test_a_moved_one_keeps_its_place_while_on_hold_and_when_its_grant_is_taken_back(cluster: LedgerPool) -> None:
    cluster.node()
    first, second, third = waiting(cluster)
    cluster.ledger.hold(third)
    assert cluster.ledger.front(third)[1:] == (0, 0)
    cluster.submit(10_000, id="later", eta_at=cluster.at + 5)
    cluster.ledger.front("later")
    cluster.ledger.unhold(third)
    assert line(cluster) == [third, first, second]
    assert [g.allocation_id for g in cluster.ledger.release("holder").grants] == [third]
    cluster.ledger.cordon("n1", drain=True)
    cluster.at += 6
    cluster.ledger.tick()
    assert sorted(line(cluster)[:2]) == sorted(["later", third]), "both before what was the first when they were moved"
    assert line(cluster)[2:] == [first, second]
    assert_right(cluster.ledger)


def test_the_front_is_that_of_ones_tenant(cluster: LedgerPool) -> None:
    """Blue holds a GPU, red none: red's turn comes first, whatever of blue's is moved."""
    cluster.node(gpus=(10_000, 10_000))
    for name, tenant in (("held", "blue"), ("free", "green"), ("b1", "blue"), ("b2", "blue"), ("r1", "red")):
        need = Requirements(10_000, tenant=tenant)
        cluster.ledger.submit(name, f"task of {name}", "work", need, message=b",}")
    cluster.ledger.front("b2")
    assert line(cluster) == ["b2", "b1", "r1"]
    assert [g.allocation_id for g in cluster.ledger.release("free").grants] == ["r1"]
    assert [g.allocation_id for g in cluster.ledger.release("r1").grants] == ["b2"]


def test_the_front_is_refused_to_what_is_granted(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(1_000, id="a")
    with pytest.raises(ActionRefused, match="a is granted: it is not in line any more"):
        cluster.ledger.front("a")
    with pytest.raises(AllocationNotFound):
        cluster.ledger.front("never was")


# --- pause


def test_a_paused_pool_grants_nothing_and_what_runs_goes_on(cluster: LedgerPool) -> None:
    cluster.node()
    running = cluster.running(1_000)
    cluster.ledger.pause(stop=True)
    assert cluster.ledger.snapshot().paused == "stopped"
    assert cluster.submit(1_000, id="a").allocation.state is State.WAITING
    assert cluster.by_hand(0, 1, id="b").allocation.state is State.WAITING
    assert cluster.ledger.release(running.allocation_id).grants == ()
    cluster.node("n2")  # also a device that comes meanwhile
    assert line(cluster) == ["a", "b"]
    assert cluster.ledger.pause(stop=True).was == "paused"
    assert [grant.allocation_id for grant in cluster.ledger.pause(stop=False).grants] == ["a"]
    assert cluster.ledger.get("b").state is State.RUNNING
    assert cluster.ledger.snapshot().paused == ""


# --- the journal


def test_an_action_and_its_entry_are_one_step(cluster: LedgerPool) -> None:
    cluster.node()
    (name,) = waiting(cluster, 1)
    done = cluster.ledger.prioritize(name, 7, note=note("priority"))
    entry = cluster.ledger.entry(done.entry or 0)
    assert (entry.action, entry.actor, entry.reason, entry.source) == ("priority", "ada", "why not", "test")
    assert (entry.objects, entry.before, entry.after) == ((f"allocation:{name}",), {"priority": 0}, {"priority": 7})
    assert (entry.at, entry.state) == (cluster.at, "done")
    last = cluster.ledger.events()[-1][1]
    assert (last["event"], last["entry"], last["actor"]) == ("operated", str(entry.number), "ada")
    assert cluster.ledger.journal() == (entry,)


def test_what_is_refused_is_not_written(cluster: LedgerPool) -> None:
    cluster.node()
    for call in (
        lambda: cluster.ledger.prioritize("never was", 1, note=note()),
        lambda: cluster.ledger.hold("never was", note=note()),
        lambda: cluster.ledger.set_state("nowhere", "cordoned", note=note()),
    ):
        with pytest.raises(LookupError):
            call()
    assert not cluster.ledger.cancel("never was", note=note()).done
    assert not cluster.ledger.release("never was", note=note()).done
    assert cluster.ledger.journal() == ()
    with pytest.raises(EntryNotFound):
        cluster.ledger.entry(1)


def test_an_idempotency_key_counts_once(cluster: LedgerPool) -> None:
    cluster.node()
    (name,) = waiting(cluster, 1)
    first = cluster.ledger.prioritize(name, 7, note=note(once="key"))
    with pytest.raises(DuplicateAction) as refused:
        cluster.ledger.prioritize(name, 9, note=note(once="key"))
    assert refused.value.entry == first.entry
    assert cluster.ledger.get(name).priority == 7
    assert len(cluster.ledger.journal()) == 1


def test_an_undo_that_was_decided_on_before_another_action_is_refused(cluster: LedgerPool) -> None:
    cluster.node()
    (name,) = waiting(cluster, 1)
    entry = cluster.ledger.hold(name, note=note("hold")).entry
    seen = cluster.ledger.journal_page().seen
    cluster.ledger.pause(stop=True, note=note("pause"))
    with pytest.raises(JournalMoved):
        cluster.ledger.unhold(name, note=note("hold", way="undo", of=entry, seen=seen))
    assert cluster.ledger.get(name).state is State.ON_HOLD
    cluster.ledger.unhold(name, note=note("hold", way="undo", of=entry, seen=seen + 1))
    with pytest.raises(ActionRefused, match="it is undone already"):
        cluster.ledger.hold(name, note=note("hold", way="undo", of=entry))


def test_the_journal_keeps_so_many_entries(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.options = type(cluster.ledger.options)(journal_maxlen=3)
    for n in range(5):
        cluster.ledger.pause(stop=n % 2 == 0, note=note())
    assert [entry.number for entry in cluster.ledger.journal()] == [5, 4, 3]
    assert [entry.number for entry in cluster.ledger.journal(limit=1, before=5)] == [4]
    with pytest.raises(EntryNotFound, match="keeps the last 3"):
        cluster.ledger.entry(2)


# --- restore


def ended(cluster: LedgerPool, name: str, **changes: Any) -> int:
    """Cancel or release ``name``; the journal entry."""
    reply = cluster.ledger.cancel(name, note=note("cancel", **changes))
    assert reply.done
    assert reply.entry is not None
    return reply.entry


def back(cluster: LedgerPool, name: str, entry: int) -> Any:
    return cluster.ledger.restore(name, note=note("cancel", way="undo", of=entry))


@pytest.mark.parametrize("settled", [False, True], ids=["result not written yet", "result written"])
def test_a_cancelled_task_is_back_under_its_old_place(cluster: LedgerPool, settled: bool) -> None:
    cluster.node()
    first, second = waiting(cluster, 2)
    before = cluster.ledger.get(first)
    entry = ended(cluster, first)
    if settled:
        cluster.ledger.settle([first])
    assert back(cluster, first, entry).becomes == "waiting"
    assert cluster.ledger.get(first) == before
    assert line(cluster) == [first, second]
    (grant,) = cluster.ledger.release("holder").grants
    assert (grant.allocation_id, grant.message) == (first, f"message of {first}".encode())
    assert cluster.ledger.tick().obituaries == ()


def test_what_was_delayed_or_on_hold_is_so_again(cluster: LedgerPool) -> None:
    cluster.node()
    (held,) = waiting(cluster, 1)
    cluster.ledger.hold(held)
    cluster.submit(10_000, id="later", eta_at=cluster.at + 50, expires_at=cluster.at + 90)
    entries = {name: ended(cluster, name) for name in (held, "later")}
    for name, entry in entries.items():
        back(cluster, name, entry)
    assert cluster.ledger.get(held).state is State.ON_HOLD
    later = cluster.ledger.get("later")
    assert (later.state, later.expires_at) == (State.DELAYED, cluster.at + 90)


def test_an_unstarted_grant_gets_its_place_again_under_a_new_token_or_goes_into_line(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    old = cluster.submit(10_000, 2, id="a").allocation
    entry = ended(cluster, "a")
    (grant,) = back(cluster, "a", entry).grants
    new = cluster.ledger.get("a")
    assert (new.state, new.device_id, new.cpu_cores) == (State.GRANTED, "gpu_0", old.cpu_cores)
    assert grant.token == new.token > old.token
    entry = ended(cluster, "a")
    cluster.submit(10_000, 2, id="b")
    assert back(cluster, "a", entry).becomes == "waiting"


def test_an_allocation_by_hand_gets_the_same_place_or_hears_who_holds_it(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    old = cluster.by_hand(4_000, 3, 500, id="mine").allocation
    reply = cluster.ledger.release("mine", note=note("release"))
    cluster.ledger.set_state("n1", "cordoned")  # it was held there before: no hindrance
    back(cluster, "mine", reply.entry or 0)
    new = cluster.ledger.get("mine")
    assert (new.device_id, new.cpu_cores, new.state) == (old.device_id, old.cpu_cores, State.RUNNING)
    cluster.ledger.set_state("n1", "ready")
    reply = cluster.ledger.release("mine", note=note("release"))
    cluster.by_hand(8_000, 1, id="theirs")
    with pytest.raises(ActionRefused, match=r"the place of mine on n1/gpu_0 is taken: .*theirs"):
        back(cluster, "mine", reply.entry or 0)
    assert cluster.ledger.entry(reply.entry or 0).state == "done"


def test_what_cannot_come_back_says_why(cluster: LedgerPool) -> None:
    cluster.node()
    (name,) = waiting(cluster, 1)
    cluster.submit(10_000, id="short", expires_at=cluster.at + 5)
    gone, short = ended(cluster, name), ended(cluster, "short")
    cluster.at += 6
    with pytest.raises(ActionRefused, match="short has expired meanwhile"):
        back(cluster, "short", short)
    back(cluster, name, gone)
    pause = cluster.ledger.pause(stop=True, note=note("pause")).entry
    with pytest.raises(ActionRefused, match="keeps no record"):
        cluster.ledger.restore(name, note=note("pause", way="undo", of=pause))
    entry = ended(cluster, name)
    cluster.ledger.settle([name])
    cluster.ledger.client.delete(f"{{allocator:{cluster.ledger.pool}}}:t:{name}")
    cluster.submit(10_000, id=name)
    with pytest.raises(ActionRefused, match="is there already: it is waiting"):
        back(cluster, name, entry)
