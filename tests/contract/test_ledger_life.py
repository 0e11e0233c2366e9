"""The life of an allocation: submit, start, release, cancel, renew, settle, and every one of them twice."""

from __future__ import annotations

import pytest

from celery_allocator.errors import AllocationNotFound, StaleTokenError, UnsatisfiableError
from celery_allocator.model import Requirements, State
from tests.support.ledger_checks import assert_empty
from tests.support.ledger_pool import LedgerPool

# --- submit


def test_a_grant_tells_everything_about_the_claim(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8, ram=64_000)
    submitted = cluster.submit(2_000, 2, 4_000)
    allocation = submitted.allocation
    assert allocation.state is State.GRANTED
    assert (allocation.node, allocation.device_id, allocation.device_uuid) == ("n1", "gpu_0", "GPU-n1-0")
    assert (allocation.cpu_cores, allocation.queue, allocation.queue_position) == ((0, 1), "q.n1.gpu_0", 0)
    assert allocation.token > 0
    assert allocation.granted_at == cluster.at
    assert not submitted.known
    left = submitted.available
    assert (left.gpu_memory_mb, left.cpu_cores, left.ram_mb) == (8_000, 6, 60_000)
    read = cluster.ledger.get(allocation.allocation_id)
    assert (read.token, read.cpu_cores, read.requirements) == (allocation.token, (0, 1), allocation.requirements)
    assert cluster.ledger.find("task of a1") == (read,)


def test_the_first_event_tells_what_was_asked_for(cluster: LedgerPool) -> None:
    """Whatever it is: delayed, waiting or granted. Later ones of the same allocation do not repeat it."""
    cluster.node(gpus=(10_000,), cores=8)
    need = Requirements(9_000, 1, 0, 7, tenant="vision")
    for name, options in (("d", {"eta_at": cluster.at + 5}), ("g", {}), ("w", {"expires_at": cluster.at + 50})):
        cluster.ledger.submit(name, f"task of {name}", "work", need, message=b"m", **options)
    cluster.ledger.release("g")
    asked = {"new": "1", "shape": "9000:1:0:t", "priority": "7", "strategy": "best_fit", "tenant": "vision"}
    events: dict[str, list[dict[str, str]]] = {}
    for _, fields in cluster.ledger.events():
        events.setdefault(fields["id"], []).append(fields)
    for name, event in (("d", "delayed"), ("g", "granted"), ("w", "waiting")):
        first, *later = events[name]
        assert first["event"] == event
        assert asked.items() <= first.items()
        assert not any("new" in fields for fields in later)
    assert (events["w"][0]["position"], events["w"][0]["expires"]) == ("1", str(int(cluster.at * 1000) + 50_000))
    assert [fields["event"] for fields in events["w"]] == ["waiting", "granted"]
    assert cluster.ledger.get("w").requirements == need


def test_submitting_the_same_id_again_changes_nothing(cluster: LedgerPool) -> None:
    cluster.node()
    first = cluster.submit(2_000, id="same").allocation
    events = cluster.happened()
    second = cluster.submit(9_000, id="same")
    assert second.known
    assert (second.allocation.token, second.allocation.gpu_memory_mb) == (first.token, 2_000)
    assert cluster.device("n1/gpu_0").memory_free_mb == 8_000
    assert cluster.happened() == events


def test_an_ended_id_cannot_be_submitted_again(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.ledger.release(cluster.submit(2_000, id="once").allocation.allocation_id)
    with pytest.raises(AllocationNotFound, match="released"):
        cluster.submit(2_000, id="once")
    assert_empty(cluster.ledger)


def test_with_no_node_known_it_waits_and_is_granted_to_the_first_that_comes(cluster: LedgerPool) -> None:
    waiting = cluster.submit(2_000)
    assert waiting.allocation.state is State.WAITING
    assert waiting.allocation.queue_position == 1
    (grant,) = cluster.node()
    assert (grant.allocation_id, grant.queue, grant.message) == ("a1", "q.n1.gpu_0", b"message of a1")
    assert cluster.ledger.get("a1").token == grant.token


def test_a_full_device_makes_the_next_one_wait_with_its_position_and_what_is_free(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.submit(8_000)
    second, third = cluster.submit(4_000), cluster.submit(4_000)
    assert (second.allocation.queue_position, third.allocation.queue_position) == (1, 2)
    assert second.allocation.token == 0
    left = second.available
    assert (left.gpu_memory_mb, left.cpu_cores, left.ram_mb) == (2_000, 7, 64_000)


@pytest.mark.parametrize(
    ("request_", "dimension", "largest"),
    [
        ((16_001, 1, 0), "gpu_memory_mb", 16_000),
        ((10_001, 5, 0), "cpu_cores", 4),  # the larger GPU's node has fewer cores
        ((1, 9, 0), "cpu_cores", 8),
        ((1, 5, 64_001), "ram_mb", 64_000),
        ((0, 1, 96_001), "ram_mb", 96_000),
    ],
)
def test_what_can_never_fit_names_the_dimension_and_the_largest(
    cluster: LedgerPool, request_: tuple[int, int, int], dimension: str, largest: int
) -> None:
    cluster.node("n1", gpus=(10_000,), cores=8, ram=64_000)
    cluster.node("n2", gpus=(16_000,), cores=4, ram=96_000)
    with pytest.raises(UnsatisfiableError) as caught:
        cluster.submit(*request_)
    assert (caught.value.dimension, caught.value.largest) == (dimension, largest)
    assert_empty(cluster.ledger)
    assert cluster.submit(*request_, on_never="wait").allocation.state is State.WAITING


def test_what_can_never_fit_is_refused_at_once_with_an_eta_too(cluster: LedgerPool) -> None:
    cluster.node()
    with pytest.raises(UnsatisfiableError):
        cluster.submit(99_000, eta_at=cluster.at + 60)


def test_an_eta_in_the_past_is_no_delay(cluster: LedgerPool) -> None:
    cluster.node()
    assert cluster.submit(1_000, eta_at=cluster.at - 1).allocation.state is State.GRANTED
    assert cluster.submit(1_000, eta_at=cluster.at + 1).allocation.state is State.DELAYED


# --- start


def test_start_succeeds_once_per_grant(cluster: LedgerPool) -> None:
    cluster.node()
    granted = cluster.submit(2_000).allocation
    running = cluster.start(granted)
    assert (running.state, running.worker, running.started_at) == (State.RUNNING, "w.n1.gpu_0", cluster.at)
    with pytest.raises(StaleTokenError, match="already running"):
        cluster.start(granted, nonce="delivery 2")
    assert cluster.start(granted, nonce="delivery 1").token == running.token  # its reply was lost
    assert cluster.happened().count("started") == 1


def test_start_refuses_an_old_token_another_incarnation_and_what_has_ended(cluster: LedgerPool) -> None:
    cluster.node()
    granted = cluster.submit(2_000).allocation
    with pytest.raises(StaleTokenError, match="no longer serves"):
        cluster.start(granted, incarnation="two")
    cluster.ledger.release("a1", granted.token, "requeue")
    with pytest.raises(StaleTokenError, match="not the live one"):
        cluster.start(granted)
    again = cluster.ledger.get("a1")
    assert again.token > granted.token
    cluster.start(again)
    cluster.ledger.release("a1", again.token)
    with pytest.raises(StaleTokenError, match="ended"):
        cluster.ledger.start("a1", again.token, "w.n1.gpu_0", "one", "delivery 1", False)


@pytest.mark.parametrize("eta", [None, 60])
def test_start_of_what_holds_nothing_is_refused_whatever_the_token(cluster: LedgerPool, eta: int | None) -> None:
    cluster.submit(2_000, eta_at=None if eta is None else cluster.at + eta)
    for token in (0, 1):
        with pytest.raises(StaleTokenError, match="delayed" if eta else "waiting"):
            cluster.ledger.start("a1", token, "w.n1.gpu_0", "one", "delivery 1", False)


# --- release


def test_release_gives_back_once_and_grants_the_next(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    first = cluster.running(8_000)
    cluster.submit(8_000)
    released = cluster.ledger.release("a1", first.token, "success")
    assert released.done
    assert [grant.allocation_id for grant in released.grants] == ["a2"]
    again = cluster.ledger.release("a1", first.token, "success")
    assert (again.done, again.grants) == (False, ())
    assert again.reason == "gone: success"
    assert cluster.ledger.release("never was").reason == "gone: "
    assert cluster.device("n1/gpu_0").memory_free_mb == 2_000
    with pytest.raises(AllocationNotFound):
        cluster.ledger.get("a1")


def test_release_with_an_old_token_changes_nothing(cluster: LedgerPool) -> None:
    cluster.node()
    old = cluster.running(2_000)
    cluster.ledger.release("a1", old.token, "requeue")
    reply = cluster.ledger.release("a1", old.token, "success")
    assert not reply.done
    assert reply.reason.startswith("stale")
    assert cluster.ledger.get("a1").state is State.GRANTED


def test_release_of_what_waits_is_refused(cluster: LedgerPool) -> None:
    cluster.submit(2_000)
    assert cluster.ledger.release("a1").reason == "not_held: waiting"
    assert len(cluster.ledger.queue()) == 1


def test_a_release_may_grant_several_shapes_in_order_of_priority_then_arrival(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    first = cluster.submit(10_000, 8).allocation
    for gpu, cores, priority in ((6_000, 1, 0), (3_000, 1, 0), (6_000, 1, 5), (1_000, 7, 0), (1_000, 2, -1)):
        cluster.submit(gpu, cores, priority=priority)
    assert [a.allocation_id for a in cluster.ledger.queue()] == ["a4", "a2", "a3", "a5", "a6"]
    grants = cluster.ledger.release("a1", first.token).grants
    # a2 no longer fits the memory, a5 no longer the cores; a6 fits beside them although it came last.
    assert [grant.allocation_id for grant in grants] == ["a4", "a3", "a6"]
    tokens = [grant.token for grant in grants]
    assert tokens == sorted(tokens)


def test_requeue_keeps_the_place_in_line(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    first = cluster.running(6_000)
    cluster.submit(6_000)
    cluster.submit(6_000)
    cluster.ledger.cordon("n1")
    cluster.ledger.release("a1", first.token, "requeue")
    assert [(a.allocation_id, a.queue_position) for a in cluster.ledger.queue()] == [("a1", 1), ("a2", 2), ("a3", 3)]
    assert cluster.ledger.get("a1").node is None


def test_requeue_finds_room_on_another_node(cluster: LedgerPool) -> None:
    """Freed is room here; what goes back into line may fit elsewhere alone."""
    cluster.node("n1")
    first = cluster.running(6_000)
    cluster.node("n2", gpus=(16_000,))
    cluster.ledger.close_worker("w.n1.gpu_0", "one")
    (grant,) = cluster.ledger.release("a1", first.token, "requeue").grants
    assert (grant.allocation_id, grant.queue) == ("a1", "q.n2.gpu_0")


def test_success_alone_feeds_the_estimate(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    for outcome, length, estimate in (
        ("failure", 50, None),
        ("success", 10, 10),
        ("success", 20, 10),
        ("success", 20, 20),
    ):
        running = cluster.running(8_000)
        cluster.at += length
        cluster.ledger.release(running.allocation_id, running.token, outcome)
        holder = cluster.submit(8_000).allocation
        waiting = cluster.submit(8_000).allocation
        # To within 5 %: a run time is known by the bucket it falls in.
        expected = None if estimate is None else pytest.approx(cluster.at + estimate, abs=0.05 * estimate)
        assert waiting.estimated_start_at == expected
        cluster.ledger.cancel(waiting.allocation_id)
        cluster.ledger.cancel(holder.allocation_id)


# --- cancel and settle


@pytest.mark.parametrize("state", ["delayed", "waiting", "granted"])
def test_cancel_ends_what_has_not_started_and_leaves_an_obituary(cluster: LedgerPool, state: str) -> None:
    if state != "waiting":
        cluster.node()
    cluster.submit(2_000, eta_at=cluster.at + 60 if state == "delayed" else None)
    reply = cluster.ledger.cancel("a1")
    assert (reply.done, reply.state) == (True, state)
    assert reply.obituary is not None
    assert (reply.obituary.task_id, reply.obituary.message) == ("task of a1", b"message of a1")
    assert not cluster.ledger.cancel("a1").done
    assert [o.allocation_id for o in cluster.ledger.tick().obituaries] == ["a1"]  # until its result is written
    assert cluster.ledger.settle(["a1"]) == 1
    assert cluster.ledger.settle(["a1"]) == 0
    assert cluster.ledger.tick().obituaries == ()
    assert_empty(cluster.ledger)


def test_cancel_of_a_grant_frees_it_for_the_next(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    cluster.submit(8_000)
    cluster.submit(8_000)
    assert [grant.allocation_id for grant in cluster.ledger.cancel("a1").grants] == ["a2"]


def test_cancel_leaves_a_running_task_alone(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(2_000)
    reply = cluster.ledger.cancel("a1")
    assert (reply.done, reply.state) == (False, "running")
    assert cluster.ledger.get("a1").state is State.RUNNING
    assert cluster.ledger.cancel("never was").state == "gone"


# --- by hand


def test_an_allocation_by_hand_runs_at_once_and_needs_no_worker(cluster: LedgerPool) -> None:
    cluster.node(slots=None)
    allocation = cluster.by_hand(2_000, ttl_s=30).allocation
    assert (allocation.state, allocation.device_id, allocation.started_at) == (State.RUNNING, "gpu_0", cluster.at)
    assert cluster.submit(2_000).allocation.state is State.WAITING  # a task does need one
    reply = cluster.ledger.cancel("a1")
    assert (reply.done, reply.state, reply.obituary) == (True, "running", None)


def test_an_allocation_by_hand_ends_with_its_ttl_unless_renewed(cluster: LedgerPool) -> None:
    cluster.node(slots=None)
    token = cluster.by_hand(2_000, ttl_s=30).allocation.token
    cluster.at += 20
    renewed = cluster.ledger.renew("a1", 30, token)
    assert renewed.expires_at == cluster.at + 30
    cluster.at += 29
    cluster.ledger.tick()
    assert cluster.ledger.get("a1").state is State.RUNNING
    cluster.at += 1
    cluster.ledger.tick()
    with pytest.raises(AllocationNotFound):
        cluster.ledger.renew("a1", 30, token)
    assert_empty(cluster.ledger)


def test_renew_refuses_tasks_old_tokens_and_strangers(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(1_000)
    token = cluster.by_hand(1_000).allocation.token
    with pytest.raises(AllocationNotFound, match="belongs to a task"):
        cluster.ledger.renew("a1", 5)
    with pytest.raises(StaleTokenError):
        cluster.ledger.renew("a2", 5, token - 1)
    with pytest.raises(AllocationNotFound):
        cluster.ledger.renew("stranger", 5)


@pytest.mark.parametrize("way", ["waiting", "requeued", "delayed"])
def test_an_allocation_by_hand_that_waits_ends_with_its_ttl_too(cluster: LedgerPool, way: str) -> None:
    cluster.node(gpus=(10_000,))
    if way == "waiting":
        cluster.submit(8_000, id="holder")
        cluster.by_hand(8_000, ttl_s=30, id="mine")
    elif way == "requeued":
        token = cluster.by_hand(8_000, ttl_s=30, id="mine").allocation.token
        cluster.ledger.cordon("n1")
        cluster.ledger.release("mine", token, "requeue")
    else:
        cluster.submit(8_000, id="holder")
        cluster.by_hand(8_000, ttl_s=30, id="mine", eta_at=cluster.at + 10)
        cluster.at += 10
        cluster.ledger.tick()
    assert cluster.ledger.get("mine").state is State.WAITING
    cluster.at += 30
    cluster.ledger.tick()
    with pytest.raises(AllocationNotFound):
        cluster.ledger.get("mine")


def test_an_allocation_by_hand_that_expires_while_waiting_is_simply_gone(cluster: LedgerPool) -> None:
    cluster.by_hand(8_000, ttl_s=30, expires_at=cluster.at + 5)
    cluster.at += 5
    assert cluster.ledger.tick().obituaries == ()
    cluster.at += 30
    cluster.ledger.tick()
    assert_empty(cluster.ledger)
