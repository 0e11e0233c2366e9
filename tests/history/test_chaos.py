"""Kill -9 of the recorder, of PostgreSQL and of the ledger's server at random under load: the rows equal the stream."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from celery_allocator.history import Recorder, open_history
from celery_allocator.history.entry import Entry
from celery_allocator.ledger import Ledger, keys
from celery_allocator.settings import Settings
from tests.history.made import folded, in_stream, recorded, stored
from tests.support.ledger_checks import assert_right
from tests.support.postgres_server import PostgresServer
from tests.support.processes import OwnedProcess, clean_environment
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

POOL = "chaos"
KILLS = int(os.environ.get("HISTORY_KILLS", "12"))
SEED = int(os.environ.get("HISTORY_SEED", "1"))


class Site:
    """Servers, load and recorders of this test alone."""

    def __init__(self, directory: Path) -> None:
        # Always: what was acknowledged is there after a kill, also where the machine dies with it.
        self.redis = RedisServer(directory / "redis", "--appendfsync", "always")
        self.postgres = PostgresServer()
        self.settings = Settings(
            backend_url=self.redis.url, pool=POOL, history_backend_url=self.postgres.url, events_maxlen=10_000_000
        )
        env = clean_environment(
            {
                "ALLOCATOR_BACKEND_URL": self.redis.url,
                "ALLOCATOR_POOL": POOL,
                "ALLOCATOR_HISTORY_BACKEND_URL": self.postgres.url,
                "ALLOCATOR_EVENTS_MAXLEN": "10000000",
            }
        )
        self.loads = [
            OwnedProcess(
                [sys.executable, "-m", "tests.history.load", self.redis.url, POOL, f"n{number}"],
                directory / f"load{number}.log",
                env=env,
            )
            for number in range(2)
        ]
        # The second stands by, and takes over when the first is killed.
        self.recorders = [
            OwnedProcess(
                [sys.executable, "-m", "celery_allocator", "recorder"], directory / f"recorder{number}.log", env=env
            )
            for number in range(2)
        ]

    def rows(self) -> int:
        """Events in the database, by a connection of its own; 0 while there is none to ask, or no table."""
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.postgres.url, connect_timeout=5) as connection:
            found = connection.execute("SELECT count(*) FROM events").fetchone()
            return found[0] if found else 0
        return 0

    def kill(self, victim: str, chance: random.Random) -> None:
        """SIGKILL, and start it again."""
        if victim == "recorder":
            for recorder in self.recorders if chance.random() < 0.3 else [chance.choice(self.recorders)]:
                recorder.kill()
                recorder.start()
        elif victim == "postgres":
            self.postgres.process.kill()
            self.postgres.start()
        else:
            self.redis.kill()
            self.redis.start()

    def output(self) -> str:
        """What all of them said, for messages."""
        return "\n".join(f"--- {p.log.name}\n{p.output()[-3000:]}" for p in [*self.recorders, *self.loads])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.redis.start()
        made.postgres.start()
        yield made
    finally:
        for process in [*made.loads, *made.recorders]:
            process.kill()
        made.postgres.close()
        made.redis.kill()


def test_the_rows_equal_the_stream_whatever_is_killed(site: Site) -> None:
    chance = random.Random(SEED)
    for process in [*site.loads, *site.recorders]:
        process.start()
    victims = ["recorder", "postgres", "ledger"] * (KILLS // 3)
    chance.shuffle(victims)
    for number, victim in enumerate(victims):
        upto = site.rows() + chance.randint(20, 400)
        wait_until(
            lambda upto=upto: site.rows() >= upto, 60, lambda n=number: f"progress before kill {n}:\n{site.output()}"
        )  # type: ignore[misc]
        site.kill(victim, chance)
    upto = site.rows() + 100
    wait_until(lambda: site.rows() >= upto, 60, site.output)
    for load in site.loads:
        assert load.stop() == 0, load.output()
    for recorder in site.recorders:
        recorder.kill()

    connect = lambda: Ledger(site.redis.client(), POOL)  # noqa: E731
    progress = Recorder(connect, site.settings).run(threading.Event(), once=True)
    assert progress.lag == 0
    with site.redis.client() as client, open_history(site.settings) as history:
        stream = in_stream(client, POOL)
        written = recorded(history)
        assert_same(stream, written)
        assert stored(history) == folded(stream)
        assert history.gaps() == []
        (group,) = client.xinfo_groups(keys.key(POOL, "events"))
        assert (group["pending"], group["lag"]) == (0, 0)
        assert_right(Ledger(client, POOL))
        happened = collections.Counter(entry.event for entry in stream)
        assert happened["released"] > 100 and happened["lost"] > 0 and happened["epoch"] > 0, happened
        cursor = history.cursor()
        assert cursor is not None and cursor.recorded == len(stream)


def assert_same(stream: list[Entry], written: list[Entry]) -> None:
    """Every entry of the stream once, and no other."""
    twice = [i for i, n in collections.Counter(e.event_id for e in written).items() if n > 1]
    assert twice == []
    missing = {e.event_id for e in stream} - {e.event_id for e in written}
    assert not missing, sorted(missing)[:10]
    more = {e.event_id for e in written} - {e.event_id for e in stream}
    assert not more, sorted(more)[:10]
    assert written == stream
