"""How fast the recorder writes into PostgreSQL, against plain COPY of the same rows in the same run.

A round fills a stream with the events of tasks whose lives overlap (a few hundred at a time, so that their rows are
written by several batches), and times the recorder from the first read to the last acknowledgement. Then it copies the
same rows, as text that PostgreSQL itself has written, into the same tables by one COPY each: nothing that reads events
can be faster. Servers are private; PostgreSQL syncs its log (fsync is on). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import psycopg
import redis
from paired import Progress, Ratio, ratio, stopwatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from celery_allocator.history import Recorder, open_history
from celery_allocator.history.recorder import BATCH
from celery_allocator.history.records import COLUMNS
from celery_allocator.history.writer import EVENT_COLUMNS
from celery_allocator.ledger import Ledger, keys
from celery_allocator.settings import Settings
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

#: Tasks that are alive at once.
ALIVE = 400
TABLES = {"events": EVENT_COLUMNS[1:], "allocations": COLUMNS}


class Site:
    """The servers of a run."""

    def __init__(self, directory: Path, batch: int) -> None:
        self.redis = RedisServer(directory / "redis")
        self.postgres = PostgresServer()
        argv = self.postgres.process.argv
        argv[argv.index("fsync=off")] = "fsync=on"
        self.batch = batch

    def __enter__(self) -> Site:
        self.redis.start()
        self.postgres.start()
        with open_history(Settings(history_backend_url=self.postgres.url)) as history:
            history.schema.upgrade()
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.kill()
        self.postgres.close()

    def round(self, events: int, seed: int) -> tuple[float, float]:
        """Seconds of the recorder, and of COPY."""
        pool = f"bench-{seed}"
        with self.redis.client() as client:
            fill(client, keys.key(pool, "events"), events, seed)
            settings = Settings(history_backend_url=self.postgres.url, pool=pool)
            recorder = Recorder(lambda: Ledger(self.redis.client(), pool), settings, batch=self.batch)
            recording = stopwatch(lambda: recorder.run(threading.Event(), once=True))
            assert recorder.progress.recorded == events, recorder.progress
            client.flushall()
        with psycopg.connect(self.postgres.url) as connection:
            texts = {table: read(connection, table, columns, pool) for table, columns in TABLES.items()}
            named = {table: renamed(text, f"{pool}-copied") for table, text in texts.items()}

            def copy() -> None:
                for table, columns in TABLES.items():
                    write(connection, table, columns, named[table])
                connection.commit()

            return recording, stopwatch(copy)


def fill(client: redis.Redis, stream: str, events: int, seed: int) -> None:
    """Events of overlapping lives, in the ledger's own form."""
    chance = random.Random(seed)  # noqa: S311  # an order, not a secret
    alive: list[list[dict[str, object]]] = []
    at = 1_800_000_000_000
    pipeline = client.pipeline(transaction=False)
    for number in range(events):
        if len(alive) < ALIVE:
            alive.append(life(number))
        life_of_one = chance.choice(alive)
        at += chance.randint(0, 2)
        pipeline.xadd(stream, {**life_of_one.pop(), "at": at})
        if not life_of_one:
            alive.remove(life_of_one)
        if number % 2000 == 1999:
            pipeline.execute()
    pipeline.execute()


def life(number: int) -> list[dict[str, object]]:
    """The events of one task, last first."""
    one: dict[str, object] = {
        "id": f"alloc_{uuid.uuid4().hex}",
        "task": str(uuid.uuid4()),
        "name": f"proj.{number % 9}",
    }
    place = {"device": f"node{number % 50}/gpu_{number % 8}", "token": number}
    asked = {"new": 1, "shape": "6144:2:4096:t", "priority": 0, "strategy": "best_fit", "tenant": "", "expires": ""}
    return [
        {**one, "event": "released", **place, "outcome": "success", "held_ms": 1234},
        {**one, "event": "started", **place, "worker": f"celery@host{number % 50}"},
        {**one, "event": "granted", **place, "cores": "0,1"},
        {**one, "event": "waiting", "position": 7, "estimate": "", **asked},
    ]


def read(connection: psycopg.Connection[tuple[object, ...]], table: str, columns: tuple[str, ...], pool: str) -> bytes:
    """A pool's rows as PostgreSQL writes them."""
    rows = f"SELECT {', '.join(columns)} FROM {table} WHERE pool = '{pool}'"  # noqa: S608  # names of this file's own
    with connection.cursor() as cursor, cursor.copy(f"COPY ({rows}) TO STDOUT".encode()) as copy:
        return b"".join(bytes(part) for part in copy)


def renamed(text: bytes, pool: str) -> bytes:
    """The same rows, as another pool's."""
    prefix = f"{pool}\t".encode()
    return b"".join(prefix + line for line in text.splitlines(keepends=True))


def write(
    connection: psycopg.Connection[tuple[object, ...]], table: str, columns: tuple[str, ...], text: bytes
) -> None:
    """Copy rows as they are."""
    statement = f"COPY {table} (pool, {', '.join(columns)}) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        copy.write(text)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some ten seconds")
    parser.add_argument("--batch", type=int, default=BATCH, help="entries per transaction (default %(default)s)")
    effort = parser.parse_args()
    rounds, events = (3, 8_000) if effort.quick else (8, 20_000)
    recording, copying = [], []
    progress = Progress("rounds", rounds)
    with tempfile.TemporaryDirectory() as directory, Site(Path(directory), effort.batch) as site:
        site.round(2_000, seed=-1)
        for number in range(rounds):
            ours, theirs = site.round(events, seed=number)
            recording.append(ours)
            copying.append(theirs)
            progress.at(number + 1)
    over: Ratio = ratio(copying, recording, blocks=rounds)
    rate = events / statistics.median(recording)
    print(f"recorder   {rate:9.0f} events/s (slowest round {events / max(recording):.0f})")
    print(f"plain COPY {events / statistics.median(copying):9.0f} events/s")
    print(f"recorder over COPY: {over}")
    print(
        json.dumps(
            {
                "events_per_s": round(rate),
                "slowest_events_per_s": round(events / max(recording)),
                "recorder_over_copy": [round(part, 3) for part in (over.value, over.low, over.high)],
            }
        )
    )


if __name__ == "__main__":
    main()
