"""The ledger's stream told as Celery events: what each becomes, outages of the broker, takeovers, what is too old."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher

from celery_allocator.ledger import Ledger, keys
from celery_allocator.model import NodeInventory, Requirements
from celery_allocator.plugin import celery_events
from celery_allocator.plugin.celery_events import BATCH, GROUP, CeleryEvents, celery_event
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    """A broker that a test may kill."""
    server = RedisServer(tmp_path / "broker").start()
    yield server
    server.kill()


@pytest.fixture
def app(broker: RedisServer, make_app: Callable[..., Celery]) -> Celery:
    return make_app(broker_url=broker.url)


@pytest.fixture
def duty(app: Celery) -> Iterator[CeleryEvents]:
    duty = CeleryEvents(app, "w@host1")
    yield duty
    duty.retire()


class Heard:
    """What reaches a monitor."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self.events.append})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._app = app

    def __enter__(self) -> Heard:
        self._thread.start()
        with self._app.connection_for_write() as connection, self._app.events.Dispatcher(connection) as dispatcher:
            wait_until(lambda: dispatcher.send("test-hello") or self.events, 20, "the monitor to listen", interval=0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.should_stop = True
        self._thread.join(20)
        self._connection.release()

    def ours(self) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"].startswith("allocator-")]

    def _run(self) -> None:
        for _ in self._receiver.consume(limit=None, wakeup=False):
            pass


def submit(ledger: Ledger, name: str) -> None:
    ledger.submit(name, f"task-{name}", "proj.infer", Requirements(gpu_memory_mb=512, cpu_cores=1), message=b"x")


def pending(ledger: Ledger) -> int:
    info: Any = ledger.client.xpending(keys.key(ledger.pool, "events"), GROUP)
    return int(info["pending"])


def told(position: str, **event: str) -> dict[str, Any]:
    found = celery_event(position, {"at": "1700000000500", **event}, "p1")
    assert found is not None
    return found


def test_a_placement_says_where_and_what() -> None:
    event = told(
        "5-1",
        event="granted",
        id="alloc_1",
        task="t1",
        name="proj.infer",
        device="n1/gpu_0",
        token="7",
        cores="2,3",
        shape="1024:2:512:t",
        tenant="blue",
    )
    assert (event["type"], event["uuid"], event["id"], event["position"]) == (
        "allocator-granted",
        "t1",
        "alloc_1",
        "5-1",
    )
    assert (event["node"], event["device"], event["queue"]) == ("n1", "gpu_0", "allocator.p1.n1.gpu_0")
    assert (event["gpu_memory_mb"], event["cpu_cores"], event["ram_mb"], event["core_ids"]) == (1024, 2, 512, [2, 3])
    assert (event["timestamp"], event["pool"], event["tenant"], event["token"]) == (1700000000.5, "p1", "blue", 7)
    assert "at" not in event and "event" not in event


def test_what_is_about_a_device_or_a_node_or_an_operator_says_so() -> None:
    lost = told("5-1", event="worker_lost", id="w@h", task="", device="n1/gpu_0")
    assert (lost["type"], lost["object"], lost["node"], lost["device"]) == (
        "allocator-worker-lost",
        "device",
        "n1",
        "gpu_0",
    )
    assert "uuid" not in lost
    gone = told("5-1", event="node_lost", id="n1", task="")
    assert (gone["type"], gone["node"]) == ("allocator-node-lost", "n1") and "device" not in gone
    acted = told("5-1", event="operated", id="node:n1", task="", action="cordon", actor="ada", entry="3", state="done")
    assert (acted["type"], acted["actor"], acted["action"], acted["entry"]) == (
        "allocator-operated",
        "ada",
        "cordon",
        3,
    )
    assert acted["object"] == "node" and acted["id"] == "n1"


def test_what_changes_nothing_or_is_not_the_ledgers_is_left_out() -> None:
    assert celery_event("5-1", {"event": "settled", "id": "a", "task": "t", "at": "1"}, "p1") is None
    assert celery_event("5-1", {"event": "made up", "at": "1"}, "p1") is None
    assert celery_event("5-1", {"event": "started", "id": "a", "task": "t"}, "p1") is None
    assert celery_event("5-1", {"event": "started", "id": "a", "task": "t", "at": "noon"}, "p1") is None


def test_it_begins_with_what_comes_then(app: Celery, ledger: Ledger, node: NodeInventory, duty: CeleryEvents) -> None:
    submit(ledger, "before")
    with Heard(app) as heard:
        duty.step(ledger)
        submit(ledger, "after")
        duty.step(ledger)
        wait_until(heard.ours, 20)
    assert [(event["type"], event["id"]) for event in heard.ours()] == [("allocator-granted", "after")]
    assert heard.ours()[0]["hostname"] == "w@host1"
    assert pending(ledger) == 0


def test_an_outage_of_the_broker_costs_nothing(
    app: Celery,
    broker: RedisServer,
    ledger: Ledger,
    node: NodeInventory,
    duty: CeleryEvents,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(celery_events, "_RETRY_S", 0.0)
    duty.step(ledger)
    submit(ledger, "one")
    duty.step(ledger)  # it is connected
    broker.kill()
    submit(ledger, "two")
    with caplog.at_level(logging.WARNING):
        duty.step(ledger)
        duty.step(ledger)
    assert len([record for record in caplog.records if "trying again" in record.message]) <= 2
    assert pending(ledger) == 1
    broker.start()
    with Heard(app) as heard:
        submit(ledger, "three")
        duty.step(ledger)
        wait_until(lambda: len(heard.ours()) >= 2, 20)
    assert [event["id"] for event in heard.ours()] == ["two", "three"]
    assert pending(ledger) == 0


def test_a_batch_that_broke_off_goes_on_where_it_broke(
    app: Celery, ledger: Ledger, node: NodeInventory, duty: CeleryEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_events, "_RETRY_S", 0.0)
    duty.step(ledger)
    for number in range(5):
        submit(ledger, f"a{number}")
    send, left = EventDispatcher.send, iter(range(3))

    def breaks(self: Any, *args: Any, **fields: Any) -> Any:
        if self.hostname == "w@host1" and next(left, None) is None:
            raise ConnectionResetError("in the middle")
        return send(self, *args, **fields)

    with Heard(app) as heard:
        with monkeypatch.context() as patch:
            patch.setattr(EventDispatcher, "send", breaks)
            duty.step(ledger)
        assert pending(ledger) == 5
        duty.step(ledger)
        wait_until(lambda: len(heard.ours()) >= 5, 20)
    assert [event["id"] for event in heard.ours()] == ["a0", "a1", "a2", "a3", "a4"]


def test_while_the_broker_is_away_it_is_not_asked_all_the_time(
    app: Celery,
    broker: RedisServer,
    ledger: Ledger,
    node: NodeInventory,
    duty: CeleryEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(celery_events, "_RETRY_S", 600.0)
    duty.step(ledger)
    broker.kill()
    submit(ledger, "one")
    duty.step(ledger)
    assert pending(ledger) == 1
    submit(ledger, "two")
    monkeypatch.setattr(duty, "_send", lambda _: pytest.fail("the broker was asked"))
    duty.step(ledger)  # in the time until the next try
    assert pending(ledger) == 1


def test_who_takes_over_tells_again_what_was_not_marked_and_leaves_nothing_out(
    app: Celery, ledger: Ledger, node: NodeInventory, duty: CeleryEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    duty.step(ledger)
    count = BATCH + 20
    for number in range(count):
        submit(ledger, f"a{number:03}")
    with Heard(app) as heard:

        class Died(Exception):
            pass

        def dies(_: Ledger, group: str, ids: list[str]) -> None:
            if ids:
                raise Died

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "acknowledge", dies)
            with pytest.raises(Died):
                duty.step(ledger)  # the first batch was sent
        other = CeleryEvents(app, "w2@host1")
        other.step(ledger)
        other.retire()
        wait_until(lambda: len({event["id"] for event in heard.ours()}) == count, 20)
        wait_until(lambda: len(heard.ours()) == count + BATCH, 20, lambda: str(heard.ours()))
    ids = [event["id"] for event in heard.ours()]
    assert ids[:BATCH] == ids[BATCH : 2 * BATCH]  # known by their positions
    assert ids[BATCH:] == sorted(ids[BATCH:])
    assert pending(ledger) == 0


def test_what_is_old_is_not_told_any_more(
    app: Celery,
    ledger: Ledger,
    node: NodeInventory,
    duty: CeleryEvents,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    duty.step(ledger)
    submit(ledger, "old")
    now = ledger.server_time()
    monkeypatch.setattr(Ledger, "server_time", lambda _: now + 301)
    with caplog.at_level(logging.WARNING), Heard(app) as heard:
        duty.step(ledger)
        assert "1 events are too old to be told" in caplog.text
        monkeypatch.setattr(Ledger, "server_time", lambda _: now)
        submit(ledger, "new")
        duty.step(ledger)
        wait_until(heard.ours, 20)
    assert [event["id"] for event in heard.ours()] == ["new"]


def test_a_stream_that_was_cut_is_told_and_read_on(
    app: Celery, ledger: Ledger, node: NodeInventory, duty: CeleryEvents, caplog: pytest.LogCaptureFixture
) -> None:
    duty.step(ledger)
    for number in range(5):
        submit(ledger, f"a{number}")
    ledger.client.xtrim(keys.key(ledger.pool, "events"), maxlen=2, approximate=False)
    with caplog.at_level(logging.WARNING), Heard(app) as heard:
        duty.step(ledger)
        wait_until(lambda: len(heard.ours()) >= 2, 20)
    assert [event["id"] for event in heard.ours()] == ["a3", "a4"]
    assert "3 entries were trimmed before they were told" in caplog.text


def test_a_server_that_has_lost_the_group_gets_it_again(
    app: Celery, ledger: Ledger, node: NodeInventory, duty: CeleryEvents
) -> None:
    duty.step(ledger)
    ledger.client.xgroup_destroy(keys.key(ledger.pool, "events"), GROUP)
    duty.step(ledger)
    with Heard(app) as heard:
        submit(ledger, "one")
        duty.step(ledger)
        wait_until(heard.ours, 20)
    assert [event["id"] for event in heard.ours()] == ["one"]


def test_flowers_counters_take_them_in(app: Celery, ledger: Ledger, node: NodeInventory, duty: CeleryEvents) -> None:
    """They are counted beside Celery's own events, and no task or worker of Flower's changes by them."""
    from flower.events import EventsState

    state = EventsState()
    duty.step(ledger)
    submit(ledger, "one")
    with Heard(app) as heard:
        duty.step(ledger)
        wait_until(heard.ours, 20)
    for event in heard.ours():
        state.event(event)
    assert dict(state.counter["w@host1"]) == {"allocator-granted": 1}
    assert dict(state.tasks) == {} and dict(state.workers) == {}
