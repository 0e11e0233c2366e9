"""How long Flower's tab takes to answer at 200 GPUs and 10,000 waiting tasks, and how long it holds up Flower's loop.

A real Flower over a real server. Every view is asked for after what was read before has grown old, in changing order,
so that each is sometimes the one that reads the ledger for the others. Meanwhile another client asks Flower's health
check without a pause: how long that takes at most is how long the loop was held up. Beside it a snapshot of the ledger
is read directly, in every round: nothing that shows the pool can be faster. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from paired import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from celery_allocator.ledger import Ledger, connect
from celery_allocator.model import Requirements
from celery_allocator.settings import Settings
from celery_allocator.surfaces.flower.board import FRESH_S
from tests.flower.scene import measure, node
from tests.support.flower_process import FlowerProcess
from tests.support.redis_server import RedisServer

NODES, GPUS = 25, 8
RUNNING, WAITING = 800, 10_000
VIEWS = {
    "page": "/allocator",
    "pool": "/allocator/data/pool",
    "waiting, first page": "/allocator/data/waiting",
    "waiting, page 150": "/allocator/data/waiting?offset=7500",
    "waiting, searched": "/allocator/data/waiting?text=t9999",
    "running": "/allocator/data/running",
    "running, searched": "/allocator/data/running?text=node-07",
    "placements": "/allocator/data/placements",
    "events": "/allocator/data/events",
}


def fill(ledger: Ledger) -> None:
    """200 GPUs with 800 tasks on them, and 10,000 of 20 shapes in line."""
    progress = Progress("filling the ledger", RUNNING + WAITING)
    for number in range(NODES):
        node(ledger, f"node-{number:02}", GPUS, cores=64)
    for number in range(RUNNING + WAITING):
        runs = number < RUNNING
        asked = Requirements(20_480 if runs else 70_000 + 500 * (number % 20), 1, 100, tenant=f"team-{number % 9}")
        ledger.submit(f"a{number}", f"t{number}", f"work.{number % 30}", asked, message=b"-" * 1000)
        progress.at(number + 1)
    measure(ledger)


class LoopWatch(threading.Thread):
    """Asks the health check again and again."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._ended = threading.Event()
        self.taken_ms: list[float] = []

    def run(self) -> None:
        while not self._ended.is_set():
            self.taken_ms.append(timed(self._url))

    def end(self) -> None:
        self._ended.set()
        self.join()


def timed(url: str) -> float:
    """Milliseconds of one request, read to its end."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  # our own Flower's
        response.read()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="4 rounds")
    options = parser.parse_args()
    rounds = 4 if options.quick else options.rounds
    taken: dict[str, list[float]] = {name: [] for name in [*VIEWS, "snapshot"]}
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis").start()
        ledger = connect(Settings(backend_url=server.url, max_waiting=100_000))
        fill(ledger)
        urls = {"CELERY_BROKER_URL": server.url, "CELERY_RESULT_BACKEND": server.url}
        flower = FlowerProcess(Path(folder), {**urls, "ALLOCATOR_BACKEND_URL": server.url}).ready()
        idle = [timed(f"{flower.url}/healthcheck") for _ in range(200)]
        names = list(VIEWS)
        for path in VIEWS.values():  # connections, templates, the first look at the stream
            timed(flower.url + path)
        watch = LoopWatch(f"{flower.url}/healthcheck")
        watch.start()
        progress = Progress("rounds", rounds)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken[name].append(timed(flower.url + VIEWS[name]))
            began = time.perf_counter()
            ledger.snapshot()
            taken["snapshot"].append((time.perf_counter() - began) * 1000)
            progress.at(number + 1)
            time.sleep(FRESH_S * 1.1)
        watch.end()
        flower.kill()
        ledger.client.close()
        server.kill()
    report(taken, idle, watch.taken_ms, rounds)


def report(taken: dict[str, list[float]], idle: list[float], watched: list[float], rounds: int) -> None:
    base = statistics.median(taken["snapshot"])
    print(f"{NODES * GPUS} GPUs, {RUNNING} running, {WAITING} waiting; {rounds} rounds; ms over HTTP, on one machine\n")
    print(f"{'view':<22} {'median':>8} {'slowest':>8} {'of a snapshot':>14}")
    for name, times in taken.items():
        print(
            f"{name:<22} {statistics.median(times):>8.1f} {max(times):>8.1f} {statistics.median(times) / base:>13.2f}x"
        )
    watched.sort()
    print(f"\nhealth check: alone {statistics.median(idle):.1f}, meanwhile {statistics.median(watched):.1f}", end=", ")
    print(f"at most {watched[-1]:.1f} of {len(watched)}")
    result = {
        "benchmark": "flower",
        "rounds": rounds,
        "slowest_ms": round(max(max(times) for name, times in taken.items() if name != "snapshot"), 1),
        "median_ms": {name: round(statistics.median(times), 1) for name, times in taken.items()},
        "over_snapshot": {name: round(statistics.median(times) / base, 2) for name, times in taken.items()},
        "loop_held_up_ms": round(watched[-1], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
