"""What a scrape costs at 200 GPUs and 10,000 waiting tasks, and how fast the event stream is counted.

scrape_over_snapshot  a whole scrape (a look at the ledger, every gauge, the text) over one snapshot of the ledger,
                      which nothing that shows the pool can do without. Looks are shared for a second: this is the
                      worst.
counting_over_reading the follower over plain reads of the same entries in the same batches, into texts

The sides of each are timed in every round, in changing order; the server is private. The stream holds tasks whose lives
overlap, 400 at a time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from history import fill as fill_stream
from paired import Ratio, Side, interleave, ratio, stopwatch
from prometheus_client import CollectorRegistry, generate_latest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from celery_allocator.ledger import Ledger, keys
from celery_allocator.metrics.collector import PoolCollector
from celery_allocator.metrics.following import BATCH, Follower
from celery_allocator.metrics.looking import Lookout
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.model import Requirements
from tests.flower.scene import measure, node
from tests.support.redis_server import RedisServer

NODES, GPUS = 25, 8
RUNNING, WAITING, SHAPES = 800, 10_000, 50
EVENTS = 20_000


def populate(ledger: Ledger) -> None:
    """200 GPUs with 800 tasks on them, measured, and 10,000 of 50 shapes in line."""
    for number in range(NODES):
        node(ledger, f"node-{number:02}", GPUS, cores=64)
    for number in range(RUNNING + WAITING):
        asked = Requirements(20_480 if number < RUNNING else 70_000 + 200 * (number % SHAPES), 1, 100)
        ledger.submit(f"a{number}", f"t{number}", f"work.{number % 30}", asked, message=b"-" * 600)
    measure(ledger)


def scraping(ledger: Ledger) -> dict[str, Side]:
    """A scrape, and a snapshot."""
    tallies = Tallies()
    lookout = Lookout(lambda: ledger, tallies)
    registry = CollectorRegistry()
    registry.register(PoolCollector(ledger.pool, tallies, lambda: lookout.take(ledger)))
    text = generate_latest(registry).decode()
    assert f'celery_allocator_allocations{{state="waiting"}} {float(WAITING)}' in text, text[:2000]
    print(f"a scrape has {len(text.splitlines()):,} lines, {len(text):,} bytes", file=sys.stderr)
    return {
        "scrape": lambda: stopwatch(lambda: generate_latest(registry)),
        "snapshot": lambda: stopwatch(ledger.snapshot),
    }


def counting(ledger: Ledger, events: int) -> dict[str, Side]:
    """The follower from the first entry to the last, and plain reads."""

    def count() -> None:
        tallies = Tallies()
        follower = Follower(lambda: ledger, tallies)
        follower.position = "0-0"
        while follower.step(ledger):
            pass
        counted = sum(tallies.counters()["events_total"].values())
        assert counted == events, counted

    def read() -> None:
        position, found = "0-0", 0
        while rows := ledger.events_after(position, BATCH)[0]:
            position, found = rows[-1][0], found + len(rows)
        assert found == events, found

    return {"count": lambda: stopwatch(count), "read": lambda: stopwatch(read)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: half a minute")
    options = parser.parse_args()
    rounds, events = (16, EVENTS // 2) if options.quick else (80, EVENTS)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis").start()
        try:
            with server.client() as client:
                ledger = Ledger(client, "bench")
                populate(ledger)
                scrapes = interleave(scraping(ledger), rounds, label="scrapes")
                fill_stream(client, keys.key("stream", "events"), events, 1)
                stream = Ledger(client, "stream")
                counts = interleave(counting(stream, events), max(8, rounds // 8), label="streams", warmup=1)
        finally:
            server.kill()
    report(scrapes, counts, events)


def report(scrapes: dict[str, list[float]], counts: dict[str, list[float]], events: int) -> None:
    """For people, and the last line for programs."""
    scrape, count = ratio(scrapes["scrape"], scrapes["snapshot"]), ratio(counts["count"], counts["read"])
    for name, times in scrapes.items():
        print(f"{name:<10} {statistics.median(times) * 1000:8.1f} ms, slowest {max(times) * 1000:.1f} ms")
    for name, times in counts.items():
        print(f"{name:<10} {events / statistics.median(times):8,.0f} events/s, slowest {events / max(times):,.0f}")
    print(f"a scrape over a snapshot: {scrape}; counting over reading: {count}")
    print(
        json.dumps(
            {
                "benchmark": "metrics",
                "scrape_ms": round(statistics.median(scrapes["scrape"]) * 1000, 1),
                "events_per_s": round(events / statistics.median(counts["count"])),
                "scrape_over_snapshot": told(scrape),
                "counting_over_reading": told(count),
            }
        )
    )


def told(found: Ratio) -> dict[str, float]:
    """A ratio as plain data."""
    return {"value": round(found.value, 2), "low": round(found.low, 2), "high": round(found.high, 2)}


if __name__ == "__main__":
    main()
