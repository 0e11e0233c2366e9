"""However a task ends, its slot comes back exactly once and its result says what happened."""

from __future__ import annotations

import os
import signal
import uuid

import psutil
import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import Reject, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from kombu.exceptions import DecodeError

from celery_allocator.ledger import Grant, new_allocation_id
from celery_allocator.model import Requirements, State, Strategy
from celery_allocator.plugin.envelope import HEADER, Envelope
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.router import requirements_header
from tests.support.cluster import SOON_S, Cluster

#: Seconds that no test waits for: what sleeps that long is to be ended by force.
PATIENT = 60
#: Billiard looks after its children every few seconds.
REAPED_S = 30.0


def test_a_failure(cluster: Cluster) -> None:
    """An exception ends the claim like a result does."""
    result = cluster.app.send_task("zoo.fail")
    with pytest.raises(ValueError, match="as asked"):
        result.get(timeout=SOON_S)
    assert _ending(cluster, result.id) == ("failure", "ValueError")


@pytest.mark.parametrize("name", ["zoo.kill_child", "zoo.exit_child"])
def test_a_child_that_dies(cluster: Cluster, name: str) -> None:
    """SIGKILL (an out-of-memory kill) and ``sys.exit``: the result is WorkerLostError."""
    result = cluster.app.send_task(name)
    with pytest.raises(WorkerLostError):
        result.get(timeout=REAPED_S)
    assert result.state == "FAILURE"
    assert _ending(cluster, result.id) == ("failure", "WorkerLostError")


def test_a_child_that_dies_takes_the_task_back_into_line(cluster: Cluster) -> None:
    """``acks_late`` with ``reject_on_worker_lost``: run again, with a new grant each time."""
    key = cluster.key()
    result = cluster.app.send_task("zoo.die_twice", (key,))
    assert result.get(timeout=2 * REAPED_S) == 3
    grants = [e["token"] for _, e in cluster.ledger.events(count=100_000) if e["task"] == result.id and "token" in e]
    assert len(set(grants)) == 3


def test_a_body_that_cannot_be_read(cluster: Cluster) -> None:
    """The worker cannot even make a request of it: parked, and its caller is told."""
    task_id = str(uuid.uuid4())
    header = requirements_header(new_allocation_id(), Requirements(512, 1, 64), Strategy.BEST_FIT)
    headers = {HEADER: header, "id": task_id, "task": "zoo.fail", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}"}
    message = Envelope(b"\xff not JSON", "application/json", "utf-8", headers, {}, 2).pack()
    _place(cluster, header["id"], task_id, message)
    with pytest.raises(DecodeError, match="cannot be read"):
        cluster.app.AsyncResult(task_id).get(timeout=SOON_S)
    (parked,) = cluster.ledger.parked()
    assert (parked.task_id, parked.message) == (task_id, message)
    cluster.ledger.unpark(parked.allocation_id, requeue=False)


def test_a_message_that_nobody_can_publish(cluster: Cluster) -> None:
    """Somebody wrote to the ledger's keys: the task is parked before any worker sees it."""
    task_id, allocation_id = str(uuid.uuid4()), new_allocation_id()
    _place(cluster, allocation_id, task_id, b"no message at all")
    with pytest.raises(DecodeError, match="cannot be read"):
        cluster.app.AsyncResult(task_id).get(timeout=SOON_S)
    assert [p.allocation_id for p in cluster.ledger.parked()] == [allocation_id]
    cluster.ledger.unpark(allocation_id, requeue=False)


def _ending(cluster: Cluster, task_id: str) -> tuple[str, str]:
    """Outcome and class of the error, as the event stream has them."""
    cluster.settle()
    (released,) = [
        e for _, e in cluster.ledger.events(count=100_000) if e["task"] == task_id and e["event"] == "released"
    ]
    return released["outcome"], released.get("error", "")


def _place(cluster: Cluster, allocation_id: str, task_id: str, message: bytes) -> None:
    submitted = cluster.ledger.submit(allocation_id, task_id, "zoo.fail", Requirements(512, 1, 64), message=message)
    granted = submitted.allocation
    if not submitted.delivered:
        publish_grants(cluster.app, [Grant(allocation_id, granted.token, str(granted.queue), message)])


def test_the_hard_time_limit(cluster: Cluster) -> None:
    """The slot is free when the killed process is gone."""
    result = cluster.app.send_task("zoo.sleep", (PATIENT,), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=REAPED_S)
    assert _ending(cluster, result.id) == ("failure", "TimeLimitExceeded")


def test_the_soft_time_limit(cluster: Cluster) -> None:
    """Is an exception like any other."""
    result = cluster.app.send_task("zoo.sleep", (PATIENT,), soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=SOON_S)


def test_revoke_of_what_runs_needs_terminate(cluster: Cluster) -> None:
    """Without it the task runs on, and so does its claim; with it the slot comes back."""
    key = cluster.key()
    result = cluster.app.send_task("zoo.hold", (key,))
    pid = cluster.held_in(key)
    result.revoke()
    assert cluster.only(result.id).state is State.RUNNING
    result.revoke(terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=SOON_S)
    cluster.settle()
    assert not _alive(pid)


def test_a_claim_lives_as_long_as_the_process_that_is_being_terminated(cluster: Cluster) -> None:
    """A process that is stopped has not given back its memory: the claim stays until it is gone."""
    key = cluster.key()
    result = cluster.app.send_task("zoo.hold", (key,))
    pid = cluster.held_in(key)
    os.kill(pid, signal.SIGSTOP)  # SIGTERM stays pending, as in a long C call
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=SOON_S)
    assert _alive(pid)
    assert cluster.only(result.id).state is State.RUNNING
    os.kill(pid, signal.SIGCONT)


def test_a_memory_error_ends_the_task_and_not_the_worker(cluster: Cluster) -> None:
    """Plain Celery's worker would exit, with all that runs on it (CuPy's out-of-memory error is a MemoryError)."""
    pids = {name: worker.container.process.pid for name, worker in cluster.workers.items()}
    result = cluster.app.send_task("zoo.no_memory")
    with pytest.raises(MemoryError, match="as on a full GPU"):
        result.get(timeout=SOON_S)
    cluster.settle()
    with cluster.full():  # every slot of both workers serves
        pass
    assert {name: worker.container.process.pid for name, worker in cluster.workers.items()} == pids
    assert all(worker.container.process.alive for worker in cluster.workers.values())


def test_ignore(cluster: Cluster) -> None:
    """No result is written, and the slot comes back."""
    key = cluster.key()
    result = cluster.app.send_task("zoo.ignore", (key,))
    cluster.until(lambda: cluster.counter(key) == 1, "the run")
    cluster.settle()
    assert result.state == "PENDING"


def test_reject_without_requeue(cluster: Cluster) -> None:
    """A failure."""
    key = cluster.key()
    with pytest.raises(Reject):
        cluster.app.send_task("zoo.reject", (key,)).get(timeout=SOON_S)
    assert cluster.counter(key) == 1


def test_reject_with_requeue(cluster: Cluster) -> None:
    """Back into line, as the broker would have done."""
    assert cluster.app.send_task("zoo.requeue", (cluster.key(),)).get(timeout=SOON_S) == 3


def test_a_task_that_the_worker_does_not_know(cluster: Cluster) -> None:
    """Its grant is given back at once, and what waits for the slot starts at once."""
    with cluster.full() as keys:
        unknown = cluster.app.send_task("zoo.unheard_of", resources={"gpu_memory_mb": 1, "priority": 1})
        waiting = cluster.app.send_task("zoo.where", resources={"gpu_memory_mb": 1})
        cluster.let_go(keys[0])
        assert waiting.get(timeout=SOON_S)["allocation"]["device"]
        with pytest.raises(Exception, match="unheard_of"):
            unknown.get(timeout=SOON_S)


def test_a_second_delivery_of_one_grant_is_dropped(cluster: Cluster) -> None:
    """A broker may deliver twice (visibility timeout, reconnect): the gate lets one pass."""
    counter, hold = cluster.key(), cluster.key()
    result = cluster.app.send_task("zoo.hold", (hold,))
    cluster.held_in(hold)
    allocation = cluster.only(result.id)
    logs = cluster.workers[str(allocation.device_id).replace("_", "")].logs
    before = logs().count("dropped a delivery")
    with cluster.app.producer_pool.acquire(block=True) as producer:
        for token in (allocation.token, allocation.token - 1):
            header = {"id": allocation.allocation_id, "token": token}
            producer.publish(
                [[counter], {}, {}],
                exchange="",
                routing_key=allocation.queue,
                serializer="json",
                headers={"id": result.id, "task": "zoo.count", "lang": "py", HEADER: header},
            )
    cluster.until(lambda: logs().count("dropped a delivery") == before + 2, "both deliveries to be dropped")
    cluster.let_go(hold)
    assert result.get(timeout=SOON_S) == hold
    assert cluster.counter(counter) == 0


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
