"""The sender: the ledger between Celery's sender and the broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from kombu.exceptions import OperationalError

from celery_allocator.errors import MessageTooLargeError, SettingsError
from celery_allocator.ledger import Ledger
from celery_allocator.model import NodeInventory, State
from celery_allocator.plugin.publish import publish_grants
from tests.plugin.conftest import QUEUE
from tests.support.ledger_checks import assert_empty
from tests.support.processes import ROOT
from tests.support.redis_server import RedisServer

GPU = {"gpu_memory_mb": 1024}


def delivered(app: Celery, queue: str = QUEUE) -> list[Any]:
    """What lies in a queue of the broker."""
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as box:
        found = [box.get_nowait() for _ in range(box.qsize())]
        for message in found:
            message.ack()
        return found


def test_a_granted_task_goes_to_its_devices_queue(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory
) -> None:
    """With its token; a waiting one goes nowhere, and its queue is nobody's business."""
    app = make_app()
    granted = [app.send_task("work", (n,), resources=GPU, queue="ignored") for n in range(2)]
    waiting = app.send_task("work", (2,), resources=GPU)
    messages = delivered(app)
    assert [message.headers["id"] for message in messages] == [result.id for result in granted]
    assert [message.payload[0] for message in messages] == [[0], [1]]
    for result, message in zip(granted, messages, strict=True):
        (allocation,) = ledger.find(result.id)
        assert message.headers["allocator"]["id"] == allocation.allocation_id
        assert message.headers["allocator"]["token"] == allocation.token > 0
    assert ledger.find(waiting.id)[0].state is State.WAITING


def test_what_a_release_grants_is_published_from_the_ledgers_copy(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory
) -> None:
    """Body, headers and properties are those of the call."""
    app = make_app()
    first = app.send_task("work", resources={"gpu_memory_mb": 8192})
    app.send_task("work", ("ü",), {"k": [1]}, resources=GPU, priority=3, headers={"x": "y"}, compression="gzip")
    delivered(app)
    released = ledger.release(ledger.find(first.id)[0].allocation_id)
    publish_grants(app, released.grants)
    (message,) = delivered(app)
    assert message.payload[:2] == [["ü"], {"k": [1]}]
    assert (message.headers["x"], message.properties["priority"]) == ("y", 3)


def test_a_publish_that_fails_takes_the_task_back(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told that it was not sent: it must not run later, and holds nothing."""
    app = make_app()
    app.send_task("work", resources=GPU)  # the pool has its producer

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the broker is down")

    monkeypatch.setattr("kombu.messaging.Producer.publish", refuse)
    with pytest.raises(OperationalError, match="the broker is down"):
        app.send_task("work", resources=GPU, task_id="unsent")
    assert ledger.find("unsent") == ()
    (other,) = ledger.held()
    ledger.release(other.allocation_id)
    assert_empty(ledger)


@pytest.mark.parametrize("retry", [False, True])
def test_a_ledger_that_is_down_is_as_a_broker_that_is_down(
    make_app: Callable[..., Celery], tmp_path: Path, retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``OperationalError``, after as many tries as the policy says."""
    app = make_app(allocator_backend_url=f"unix://{tmp_path}/nobody.sock")
    tries, submit = list[str](), Ledger.submit

    def counted(self: Ledger, allocation_id: str, *args: Any, **options: Any) -> Any:
        tries.append(allocation_id)
        return submit(self, allocation_id, *args, **options)

    monkeypatch.setattr(Ledger, "submit", counted)
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    with pytest.raises(OperationalError, match="cannot be reached"):
        app.send_task("work", resources=GPU, retry=retry, retry_policy=policy)
    assert len(tries) == (2 if retry else 1)
    assert len(set(tries)) == 1, "one claim, however often it is sent"
    app.send_task("plain", queue="plain")  # needs no ledger
    assert len(delivered(app, "plain")) == 1


def test_the_old_message_protocol_is_refused_before_anything_is_claimed(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory
) -> None:
    """Protocol 1 has no headers to carry the grant in."""
    app = make_app(task_protocol=1)
    with pytest.raises(SettingsError, match="task_protocol = 2"):
        app.send_task("work", resources=GPU)
    assert_empty(ledger)
    app.send_task("plain", queue="plain")
    assert len(delivered(app, "plain")) == 1


def test_a_message_larger_than_the_bound_is_refused_before_anything_is_claimed(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory
) -> None:
    """As packed: the error names the task, both sizes and what to do. Just below the bound it is taken."""
    app = make_app(allocator_max_message_bytes=20_000)
    delivered(app)  # what other tests left in the broker
    with pytest.raises(MessageTooLargeError, match=r"message of work has \d+ bytes.*20000.*Pass a path") as caught:
        app.send_task("work", ("x" * 20_000,), resources=GPU)
    assert caught.value.size > caught.value.bound == 20_000
    assert_empty(ledger)
    assert delivered(app) == []
    app.send_task("work", ("x" * 10_000,), resources=GPU)
    assert len(delivered(app)) == 1
    app.send_task("plain", ("x" * 20_000,), queue="plain")  # a plain task is not the ledger's business
    assert len(delivered(app, "plain")) == 1


def test_seconds_are_counted_by_the_ledgers_clock(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However wrong the caller's is; a moment that was named is that moment, and plain tasks are Celery's business."""
    app = make_app()
    delivered(app)
    off = timedelta(hours=1)
    here = datetime.now(timezone.utc)
    monkeypatch.setattr(app, "now", lambda: datetime.now(timezone.utc) + off)
    counted = app.send_task("work", resources=GPU, countdown=20, expires=50)
    named = app.send_task("work", resources=GPU, eta=here + timedelta(seconds=70), expires=here + timedelta(seconds=90))
    found = [ledger.find(result.id)[0] for result in (counted, named)]
    for allocation, eta_s, expires_s in zip(found, (20, 70), (50, 90), strict=True):
        assert allocation.eta_at is not None
        assert allocation.expires_at is not None
        # Celery itself takes the time more than once in a call, and the suite may be slow.
        assert allocation.eta_at - here.timestamp() == pytest.approx(eta_s, abs=15)
        assert allocation.expires_at - here.timestamp() == pytest.approx(expires_s, abs=15)
    app.send_task("plain", queue="plain", countdown=20)
    (plain,) = delivered(app, "plain")
    assert datetime.fromisoformat(plain.headers["eta"]) > here + off


def test_celerys_publish_signals_are_sent_once(
    make_app: Callable[..., Celery], ledger: Ledger, node: NodeInventory
) -> None:
    """Waiting or granted: for Celery the task is sent."""
    app = make_app()
    seen: list[str] = []

    def note(sender: Any = None, headers: Any = None, **_: Any) -> None:
        seen.append(headers["id"])

    signals.before_task_publish.connect(note)
    signals.after_task_publish.connect(note)
    try:
        sent = [app.send_task("work", resources={"gpu_memory_mb": 8192}).id for _ in range(2)]
    finally:
        signals.before_task_publish.disconnect(note)
        signals.after_task_publish.disconnect(note)
    assert seen == [sent[0], sent[0], sent[1], sent[1]]


_FORK = """
import multiprocessing, sys
from celery import Celery
from celery_allocator import install
from celery_allocator.model import Requirements
from celery_allocator.plugin.session import session

url, pool = sys.argv[1:]
app = Celery("test", broker="memory://")
app.conf.update(allocator_backend_url=url, allocator_pool=pool)
current = session(install(app))
mine = current.ledger
mine.snapshot()

def child():
    theirs = session(app).ledger
    assert theirs is not mine and theirs.pool == mine.pool
    assert theirs.client.connection_pool is not mine.client.connection_pool
    theirs.submit("alloc_child", "t", "n", Requirements(cpu_cores=1))

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
assert process.exitcode == 0
assert mine.get("alloc_child").task_id == "t"
assert current.ledger is mine
"""


def test_every_fork_has_a_ledger_client_of_its_own(redis_server: RedisServer, pool: str) -> None:
    """Two processes on one connection would read each other's replies.

    In an interpreter of its own: kombu closes what it finds in a fork, also what other tests left, and waits for it.
    """
    command = [sys.executable, "-c", _FORK, redis_server.socket_url, pool]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
