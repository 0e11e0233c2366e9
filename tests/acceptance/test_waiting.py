"""What happens to a task before it starts: waiting, delay, order, expiry, revocation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from celery import group
from celery.app.control import Inspect
from celery.exceptions import MaxRetriesExceededError, TaskRevokedError

from celery_allocator.errors import RequirementsError, UnsatisfiableError
from celery_allocator.model import State
from celery_allocator.plugin.envelope import Envelope
from tests.support.cluster import NODE, SOON_S, Cluster, worker_spec

ALL_OF_IT = {"gpu_memory_mb": 8192}


def inspect(cluster: Cluster) -> Inspect:
    """Asks every worker of the cluster, and waits no longer than the last of them needs."""
    names = [worker.worker for worker in cluster.ledger.snapshot().workers]
    return cluster.app.control.inspect(destination=names, timeout=SOON_S)


def test_a_waiting_task_costs_no_worker_and_starts_when_there_is_room(cluster: Cluster) -> None:
    """It has a position, no queue and no delivery; it runs on the device that is free first."""
    with cluster.full() as keys:
        result = cluster.app.send_task("zoo.where")
        allocation = cluster.only(result.id)
        assert (allocation.state, allocation.queue_position, allocation.queue) == (State.WAITING, 1, None)
        reserved = inspect(cluster).reserved()
        assert len(reserved) == len(cluster.workers) and not any(reserved.values())
        cluster.let_go(keys[-1])
        held = result.get(timeout=SOON_S)["allocation"]
        assert (held["node"], held["device"]) == (NODE, "gpu_1")
        assert held["token"] > 0


def test_priority_orders_what_waits(cluster: Cluster) -> None:
    """The larger priority first; among equals, who came first."""
    names = cluster.key()
    sent = (("low", -5), ("middle", 0), ("middle again", 0), ("high", 7))
    with cluster.full():
        for name, priority in sent:
            # All of a GPU's memory and both GPUs' turn: one at a time.
            need = {"gpu_memory_mb": 8192, "cpu_cores": 8, "priority": priority}
            cluster.app.send_task("zoo.note", (names, name), resources=need)
        positions = {a.queue_position: a.priority for a in cluster.ledger.queue()}
        assert positions == {1: 7, 2: 0, 3: 0, 4: -5}
    cluster.settle()
    assert cluster.notes(names) == ["high", "middle", "middle again", "low"]


def test_countdown_is_kept_by_the_ledger(cluster: Cluster) -> None:
    """Delayed until then, on no worker; afterwards placed like any other."""
    sent_at = time.time()
    result = cluster.app.send_task("zoo.where", countdown=3)
    allocation = cluster.only(result.id)
    assert allocation.state is State.DELAYED
    assert sent_at + 2.99 <= (allocation.eta_at or 0) <= time.time() + 3.01
    scheduled = inspect(cluster).scheduled()
    assert len(scheduled) == len(cluster.workers) and not any(scheduled.values())
    held = result.get(timeout=SOON_S)["allocation"]
    assert held["started_at"] >= sent_at + 2.99


def test_eta_of_another_time_zone(cluster: Cluster) -> None:
    """An ETA means an instant, however it is written."""
    from datetime import datetime, timedelta, timezone

    east = timezone(timedelta(hours=5, minutes=30))
    when = datetime.now(tz=east) + timedelta(seconds=3)
    result = cluster.app.send_task("zoo.where", eta=when)
    assert cluster.only(result.id).eta_at == pytest.approx(when.timestamp(), abs=0.01)
    assert result.get(timeout=SOON_S)["allocation"]["started_at"] >= when.timestamp() - 0.01


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED])
def test_an_expired_task_is_revoked(cluster: Cluster, state: State) -> None:
    """It never runs, and whoever asks for its result is told."""
    counter = cluster.key()
    options = {"countdown": 60} if state is State.DELAYED else {}
    with cluster.full():
        result = cluster.app.send_task("zoo.count", (counter,), expires=2, **options)
        assert cluster.only(result.id).state is state
        with pytest.raises(TaskRevokedError, match="expired"):
            result.get(timeout=SOON_S)
        assert result.state == "REVOKED"
        assert cluster.ledger.find(result.id) == ()
    assert cluster.counter(counter) == 0


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED])
def test_revoke_before_the_start(cluster: Cluster, state: State) -> None:
    """The ledger knows at once, the result says REVOKED, and the task never runs."""
    counter = cluster.key()
    options = {"countdown": 60} if state is State.DELAYED else {}
    with cluster.full():
        result = cluster.app.send_task("zoo.count", (counter,), **options)
        assert cluster.only(result.id).state is state
        result.revoke()
        assert cluster.ledger.find(result.id) == ()
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevokedError):
            result.get(timeout=SOON_S)
    assert cluster.counter(counter) == 0


def test_revoke_of_a_group(cluster: Cluster) -> None:
    """All members at once."""
    counter = cluster.key()
    sig = cluster.app.signature("zoo.count", (counter,))
    with cluster.full():
        result = group([sig.clone() for _ in range(5)], app=cluster.app).apply_async()
        assert len(cluster.ledger.queue()) == 5
        result.revoke()
        assert cluster.ledger.queue() == ()
        assert {each.state for each in result.results} == {"REVOKED"}
    assert cluster.counter(counter) == 0


def test_revoke_and_start_with_no_worker_online(new_cluster: Callable[..., Cluster]) -> None:
    """Tasks wait before any node is known; a revoked one is gone, the other starts when a worker comes."""
    cluster = new_cluster()
    counter = cluster.key()
    unwanted = cluster.app.send_task("zoo.count", (counter,))
    wanted = cluster.app.send_task("zoo.where")
    assert [a.state for a in cluster.ledger.queue()] == [State.WAITING, State.WAITING]
    unwanted.revoke()
    assert cluster.ledger.find(unwanted.id) == ()
    assert unwanted.state == "REVOKED"
    cluster.start(worker_spec("gpu1", "1"))
    assert wanted.get(timeout=SOON_S)["allocation"]["device"] == "gpu_1"
    cluster.settle()
    assert cluster.counter(counter) == 0


def test_what_can_never_fit_is_refused_at_the_call(cluster: Cluster) -> None:
    """The error names the dimension and the largest that exists; nothing is left behind."""
    for need, dimension, largest in (
        ({"gpu_memory_mb": 8193}, "gpu_memory_mb", 8192),
        ({"gpu_memory_mb": 1, "cpu_cores": 9}, "cpu_cores", 8),
        ({"ram_mb": 16385}, "ram_mb", 16384),
    ):
        with pytest.raises(UnsatisfiableError) as raised:
            cluster.app.send_task("zoo.add", (1, 2), resources=need)
        assert (raised.value.dimension, raised.value.largest) == (dimension, largest)
    with pytest.raises(RequirementsError, match="gpu_memory=1: unknown requirement"):
        cluster.app.send_task("zoo.add", (1, 2), resources={"gpu_memory": 1})
    assert cluster.idle()


def test_what_can_never_fit_waits_where_that_is_set(cluster: Cluster) -> None:
    """``allocator_never_fits="wait"``: a larger device may come."""
    patient = cluster.make_app(allocator_never_fits="wait")
    result = patient.send_task("zoo.add", (1, 2), resources={"gpu_memory_mb": 100_000})
    assert cluster.only(result.id).state is State.WAITING
    result.revoke()
    assert cluster.ledger.find(result.id) == ()


def test_a_retry_waits_like_any_other(cluster: Cluster) -> None:
    """With the requirements of the call, under the same id, after the countdown; no slot is held meanwhile."""
    key = cluster.key()
    need = {"gpu_memory_mb": 3000, "cpu_cores": 2, "priority": 4}
    result = cluster.app.send_task("zoo.retry", (key, 3), {"countdown": 0.4}, resources=need, strategy="first_fit")

    def delayed_and_no_slot_held() -> bool:
        state = cluster.ledger.snapshot()  # at one instant
        free = [device.slots_free for device in state.devices if device.device_id.startswith("gpu_")]
        return state.delayed == 1 and free == [2, 2]

    cluster.until(delayed_and_no_slot_held, "the retry to be delayed")
    held = result.get(timeout=SOON_S)["allocation"]
    assert (held["req"], held["strategy"]) == ({**need, "ram_mb": 0}, "first_fit")
    assert cluster.counter(key) == 3
    tired = cluster.app.send_task("zoo.retry", (cluster.key(), 9))
    with pytest.raises(MaxRetriesExceededError):
        tired.get(timeout=SOON_S)


def test_autoretry_and_its_limit(cluster: Cluster) -> None:
    """As with plain Celery, also when every run needs a whole GPU."""
    result = cluster.app.send_task("zoo.autoretry", (cluster.key(), 3), resources=ALL_OF_IT)
    assert result.get(timeout=SOON_S) == 3
    tired = cluster.app.send_task("zoo.autoretry", (cluster.key(), 9), resources=ALL_OF_IT)
    with pytest.raises(ValueError, match="run 3"):
        tired.get(timeout=SOON_S)


def test_the_message_is_kept_until_the_end_and_no_longer(cluster: Cluster) -> None:
    """The ledger's copy is what a lost worker's task is granted from again."""
    with cluster.full():
        result = cluster.app.send_task("zoo.add", (1, 2))
        key = f"{{allocator:{cluster.pool}}}:a:{cluster.only(result.id).allocation_id}"
        envelope = Envelope.unpack(cluster.client.hget(key, "msg"))
        assert envelope.headers["id"] == result.id
        assert json.loads(envelope.body)[0] == [1, 2]
    assert result.get(timeout=SOON_S) == 3
    cluster.until(lambda: not cluster.client.exists(key), "the record to go")
