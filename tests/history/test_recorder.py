"""The recorder on both databases, with a real ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import redis

from celery_allocator.errors import HistoryError, HistoryUnavailable, LedgerUnavailable
from celery_allocator.history import History, Progress, Recorder, RecorderThread, open_history
from celery_allocator.history.entry import parse
from celery_allocator.history.recorder import CONSUMER, GROUP
from celery_allocator.history.turns import turns_to_write
from celery_allocator.ledger import Ledger, Options, keys
from celery_allocator.settings import Settings
from tests.history.made import folded, in_stream, recorded, stored
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

Record = Callable[[], Progress]


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    """A pool with one node."""
    made = LedgerPool(ledger_client, pool, Options(max_losses=2))
    made.node("n1", (10_000, 8_000), slots=2)
    return made


@pytest.fixture
def connect(redis_server: RedisServer, pool: str) -> Callable[[], Ledger]:
    return lambda: Ledger(redis_server.client(), pool)


@pytest.fixture
def record(connect: Callable[[], Ledger], settings: Settings) -> Record:
    """Catch up once, in small batches."""
    return lambda: Recorder(connect, settings, batch=7).run(threading.Event(), once=True)


@pytest.fixture
def stream(ledger_client: redis.Redis, pool: str) -> str:
    return keys.key(pool, "events")


def live(cluster: LedgerPool, tasks: int = 12) -> None:
    """Tasks of all kinds come and go."""
    for number in range(tasks):
        cluster.at += 1
        submitted = cluster.submit(4000, 2, priority=number % 3, expires_at=cluster.at + 3600)
        if submitted.allocation.token:
            cluster.start(submitted.allocation, repeatable=number % 2 == 0)
        if number % 4 == 3:
            cluster.at += 5
            for held in cluster.ledger.held()[:2]:
                cluster.ledger.release(held.allocation_id, outcome=["success", "lost", "requeue"][number // 4 % 3])
    cluster.ledger.cordon("n1/gpu_1", drain=True)
    cluster.ledger.uncordon("n1/gpu_1")


def assert_equal_to_the_stream(history: History, client: redis.Redis, stream: str) -> None:
    entries = in_stream(client, history.pool)
    assert recorded(history) == entries
    assert stored(history) == folded(entries)


def test_the_rows_are_those_of_the_stream(
    cluster: LedgerPool, record: Record, history: History, ledger_client: redis.Redis, stream: str
) -> None:
    live(cluster)
    progress = record()
    assert progress.recorded == ledger_client.xlen(stream) > 30
    assert (progress.lag, progress.gaps, progress.state) == (0, 0, "recording")
    assert_equal_to_the_stream(history, ledger_client, stream)
    live(cluster)
    record()
    assert_equal_to_the_stream(history, ledger_client, stream)
    (group,) = ledger_client.xinfo_groups(stream)
    assert (group["name"], group["pending"], group["lag"]) == (GROUP.encode(), 0, 0)
    cursor = history.cursor()
    assert cursor is not None
    assert cursor.recorded == ledger_client.xlen(stream)
    assert history.gaps() == []
    with history.session() as session:
        states = session.connection().exec_driver_sql("SELECT DISTINCT event FROM device_states").scalars().all()
    assert {"worker", "draining", "uncordoned"} <= set(states)


def test_what_was_written_and_not_acknowledged_is_not_written_twice(
    cluster: LedgerPool,
    record: Record,
    settings: Settings,
    history: History,
    connect: Callable[[], Ledger],
    ledger_client: redis.Redis,
    stream: str,
) -> None:
    live(cluster)

    def cut() -> Ledger:
        ledger = connect()

        def refuse(group: str, entry_ids: object) -> None:
            raise KeyboardInterrupt

        ledger.acknowledge = refuse  # type: ignore[method-assign]
        return ledger

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Recorder(cut, settings, batch=9).run(threading.Event(), once=True)
    assert len(recorded(history)) == 9
    progress = record()
    assert progress.repeated == 9
    assert_equal_to_the_stream(history, ledger_client, stream)


def test_a_group_that_was_removed_is_made_again(
    cluster: LedgerPool, record: Record, history: History, ledger_client: redis.Redis, stream: str
) -> None:
    live(cluster)
    first = record()
    ledger_client.xgroup_destroy(stream, GROUP)
    live(cluster)
    again = record()
    assert (again.repeated, again.gaps) == (first.recorded, 0)
    assert_equal_to_the_stream(history, ledger_client, stream)


def test_a_stream_that_is_gone_is_a_gap(
    cluster: LedgerPool, record: Record, history: History, ledger_client: redis.Redis, stream: str
) -> None:
    live(cluster)
    before = record()
    kept = recorded(history)
    ledger_client.delete(stream)
    live(cluster)
    assert record().gaps == 1
    (gap,) = history.gaps()
    assert (gap.first_event_id, gap.entries) == (before.position, None)
    assert recorded(history) == kept + in_stream(ledger_client, history.pool)
    assert record().gaps == 0


def test_an_overrun_is_noticed_and_counted(
    cluster: LedgerPool,
    record: Record,
    history: History,
    ledger_client: redis.Redis,
    stream: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    live(cluster)
    before = record()
    for number in range(30):
        ledger_client.xadd(stream, {"event": "epoch", "at": number, "id": "", "task": ""})
    ledger_client.xtrim(stream, maxlen=10, approximate=False)
    with caplog.at_level(logging.ERROR):
        progress = record()
    assert (progress.gaps, progress.missed, progress.recorded) == (1, 20, 10)
    assert "20 entries of pool" in caplog.text and "allocator_events_maxlen" in caplog.text
    (gap,) = history.gaps()
    assert (gap.first_event_id, gap.entries) == (before.position, 20)
    assert gap.last_event_id == ledger_client.xrange(stream)[0][0].decode()
    assert record().gaps == 0
    # And again: a second hole is another row.
    for number in range(12):
        ledger_client.xadd(stream, {"event": "epoch", "at": number, "id": "", "task": ""})
    ledger_client.xtrim(stream, maxlen=5, approximate=False)
    assert record().missed == 7
    assert [g.entries for g in history.gaps()] == [20, 7]


def test_a_gap_that_was_noticed_before_a_crash_is_one_gap(
    cluster: LedgerPool,
    connect: Callable[[], Ledger],
    settings: Settings,
    record: Record,
    history: History,
    ledger_client: redis.Redis,
    stream: str,
) -> None:
    record()

    def dies_after_noticing() -> Ledger:
        ledger = connect()
        read = ledger.read_events

        def once(*args: object, accepted: int = 0, **options: object) -> object:
            if accepted:
                raise KeyboardInterrupt
            return read(*args, accepted=accepted, **options)  # type: ignore[arg-type]

        ledger.read_events = once  # type: ignore[method-assign, assignment]
        return ledger

    for entries in (15, 8):
        for number in range(entries):
            ledger_client.xadd(stream, {"event": "epoch", "at": number, "id": "", "task": ""})
        ledger_client.xtrim(stream, maxlen=5, approximate=False)
        with pytest.raises(KeyboardInterrupt):
            Recorder(dies_after_noticing, settings).run(threading.Event(), once=True)
    assert [gap.entries for gap in history.gaps()] == [18]
    assert record().recorded == 5
    assert [gap.entries for gap in history.gaps()] == [18]


@pytest.mark.parametrize("written", [False, True])
def test_delivered_and_trimmed(
    written: bool,
    cluster: LedgerPool,
    connect: Callable[[], Ledger],
    settings: Settings,
    record: Record,
    history: History,
    ledger_client: redis.Redis,
    stream: str,
) -> None:
    """Entries that a recorder had read when it died, and whose content the stream has dropped since."""
    record()
    live(cluster)
    ledger = connect()
    found = ledger.read_events(GROUP, CONSUMER, 10)
    ids = [event_id for event_id, _ in found.entries]  # type: ignore[union-attr]
    if written:
        with turns_to_write(history._url, settings.pool, history.schema) as take:
            writer = take()
            assert writer is not None
            writer.write(
                [parse(i, fields or {}) for i, fields in found.entries],  # type: ignore[union-attr]
                datetime.now(tz=timezone.utc),
            )
    ledger_client.xtrim(stream, minid=ids[6], approximate=False)
    progress = record()
    ledger.client.close()
    if written:
        assert history.gaps() == []
    else:
        (gap,) = history.gaps()
        assert (gap.first_event_id, gap.last_event_id, gap.entries) == (ids[0], ids[5], 6)
        assert progress.missed == 6
    assert recorded(history)[-1].event_id == progress.position


def test_entries_read_under_another_name_are_taken_over(
    cluster: LedgerPool,
    connect: Callable[[], Ledger],
    record: Record,
    history: History,
    ledger_client: redis.Redis,
    stream: str,
) -> None:
    record()
    live(cluster)
    ledger = connect()
    ledger.read_events(GROUP, "somebody", 10)
    ledger.client.close()
    record()
    assert_equal_to_the_stream(history, ledger_client, stream)


@pytest.fixture
def two(connect: Callable[[], Ledger], settings: Settings) -> Iterator[list[RecorderThread]]:
    """Two recorders at once."""
    threads = [RecorderThread(Recorder(connect, settings)) for _ in range(2)]
    yield threads
    for thread in threads:
        thread.stop()


def test_one_at_a_time_and_the_other_takes_over(
    cluster: LedgerPool,
    two: list[RecorderThread],
    record: Record,
    history: History,
    ledger_client: redis.Redis,
    stream: str,
) -> None:
    first, second = two
    first.start()
    wait_until(lambda: first.recorder.progress.state == "recording")
    second.start()
    wait_until(lambda: second.recorder.progress.state == "standing by")
    live(cluster)
    wait_until(lambda: first.recorder.progress.recorded == ledger_client.xlen(stream))
    with pytest.raises(HistoryError, match="another recorder"):
        record()
    assert first.stop(30)
    wait_until(lambda: second.recorder.progress.state == "recording")
    live(cluster)
    wait_until(lambda: second.recorder.progress.recorded > 0 and second.recorder.progress.lag == 0)
    wait_until(lambda: len(recorded(history)) == ledger_client.xlen(stream))
    assert_equal_to_the_stream(history, ledger_client, stream)
    assert second.recorder.progress.repeated == 0


def test_pools_in_one_database_do_not_meet(
    cluster: LedgerPool, record: Record, history: History, settings: Settings, redis_server: RedisServer
) -> None:
    live(cluster)
    record()
    other = replace(settings, pool=f"{settings.pool}-other")
    their = LedgerPool(redis_server.client(), other.pool)
    their.submit(1, id="a1")
    Recorder(lambda: Ledger(redis_server.client(), other.pool), other).run(threading.Event(), once=True)
    with open_history(other) as theirs:
        assert stored(theirs)["a1"]["gpu_memory_mb"] == 1
    assert stored(history)["a1"]["gpu_memory_mb"] == 4000
    their.ledger.client.close()


def test_what_is_too_old_is_deleted_and_does_not_come_again(
    connect: Callable[[], Ledger], settings: Settings, history: History, ledger_client: redis.Redis, stream: str
) -> None:
    now = datetime.now(tz=timezone.utc)

    def add(object_id: str, age: timedelta) -> None:
        at = round((now - age).timestamp() * 1000)
        fields = {"event": "waiting", "at": at, "id": object_id, "task": "", "new": 1, "shape": "1:1:1:t"}
        ledger_client.xadd(stream, {**fields, "priority": 0, "strategy": "best_fit"})

    add("old", timedelta(days=10))
    add("newer", timedelta(days=1))
    Recorder(connect, settings).run(threading.Event(), once=True)
    assert set(stored(history)) == {"old", "newer"}

    thread = RecorderThread(Recorder(connect, replace(settings, history_days=5)))
    thread.start()
    try:
        wait_until(lambda: thread.recorder.progress.deleted == 2)
    finally:
        thread.stop()
    assert set(stored(history)) == {"newer"} and [e.object_id for e in recorded(history)] == ["newer"]
    ledger_client.xgroup_destroy(stream, GROUP)
    Recorder(connect, replace(settings, history_days=5)).run(threading.Event(), once=True)
    assert [e.object_id for e in recorded(history)] == ["newer"]


def test_a_server_that_is_away_is_waited_for(
    cluster: LedgerPool, connect: Callable[[], Ledger], settings: Settings, history: History
) -> None:
    live(cluster)
    refusals = iter([LedgerUnavailable("away"), HistoryUnavailable("away"), LedgerUnavailable("away")])

    def unsteady() -> Ledger:
        for refusal in refusals:
            raise refusal
        return connect()

    progress = Recorder(unsteady, settings).run(threading.Event(), once=True)
    assert progress.recorded == len(recorded(history)) > 0


def test_an_entry_that_no_ledger_would_write_stops_nothing(
    cluster: LedgerPool, record: Record, history: History, ledger_client: redis.Redis, stream: str
) -> None:
    ledger_client.xadd(
        stream, {b"\xff\0\\u0000": b'\0\xfe\\"' * 5000, "event": "granted", "id": "x" * 9000, "at": "never"}
    )
    ledger_client.xadd(stream, {"event": "released", "id": "y", "held_ms": "9" * 19, "at": "-5", "token": "9" * 30})
    ledger_client.xadd(stream, {"new": "", "event": "waiting", "id": "z", "shape": f"{'9' * 12}:1:1:t", "at": 2**60})
    live(cluster)
    record()
    assert len(recorded(history)) == ledger_client.xlen(stream)
    assert {"y", "z"} <= set(stored(history))
    assert stored(history) == folded(in_stream(ledger_client, history.pool))


def test_it_goes_on_while_everything_is_flushed_and_the_stream_is_tiny(
    tmp_path: Path, settings: Settings, history: History
) -> None:
    """FLUSHALL under a recorder at work; then a stream that keeps next to nothing, and a recorder that comes late."""
    server = RedisServer(tmp_path / "redis").start()
    clients: list[redis.Redis] = []

    def connect() -> Ledger:
        clients.append(server.client())
        return Ledger(clients[-1], settings.pool, options=Options(events_maxlen=100))

    thread = RecorderThread(Recorder(connect, settings))
    try:
        cluster = LedgerPool(server.client(), settings.pool, Options(events_maxlen=100))
        clients.append(cluster.ledger.client)
        cluster.node("n1", (10_000, 8_000), slots=2)
        thread.start()
        live(cluster)
        last = in_stream(cluster.ledger.client, settings.pool)[-1]
        wait_until(lambda: thread.recorder.progress.position == last.event_id)
        cluster.ledger.client.flushall()
        wait_until(lambda: thread.recorder.progress.gaps == 1)
        cluster.node("n1", (10_000, 8_000), slots=2)
        live(cluster)
        entries = in_stream(cluster.ledger.client, settings.pool)
        wait_until(lambda: thread.recorder.progress.position == entries[-1].event_id)
        assert recorded(history)[-len(entries) :] == entries
        assert thread.stop(30)

        for _ in range(30):
            live(cluster)
        kept = in_stream(cluster.ledger.client, settings.pool)
        progress = Recorder(connect, settings).run(threading.Event(), once=True)
        assert (progress.gaps, progress.recorded) == (1, len(kept)) and progress.missed > 300
        found = recorded(history)
        assert found[-len(kept) :] == kept
        added = cluster.ledger.client.xinfo_stream(keys.key(settings.pool, "events"))["entries-added"]
        assert len(found) - found.index(entries[0]) + progress.missed == added
    finally:
        thread.stop()
        for client in clients:
            client.close()
        server.kill()


def test_a_count_that_the_server_has_forgotten_is_no_gap(
    cluster: LedgerPool, record: Record, history: History, ledger_client: redis.Redis, stream: str
) -> None:
    """Redis 7.0 forgets how many entries a group has read when it restarts."""
    live(cluster)
    record()
    ledger_client.xtrim(stream, maxlen=5, approximate=False)
    (group,) = ledger_client.xinfo_groups(stream)
    ledger_client.execute_command("XGROUP", "SETID", stream, GROUP, group["last-delivered-id"], "ENTRIESREAD", 3)
    live(cluster)
    assert record().gaps == 0
    (group,) = ledger_client.xinfo_groups(stream)
    assert (group["entries-read"], group["lag"]) == (ledger_client.xinfo_stream(stream)["entries-added"], 0)
