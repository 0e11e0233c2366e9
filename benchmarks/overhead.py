"""What the plugin costs over plain Celery: the same tasks through both, interleaved in one run, with real workers.

Measured are the time of ``apply_async`` (granted at once, and waiting), short tasks per second from the first
``apply_async`` to the last end, and the idle gap of a full GPU: from the end of one task to the start of the next. One
private server is broker, result backend and ledger. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from overhead_sides import GPU_MB, Worker, offer, server, wait_until, workers
from overhead_tasks import make_app, read_records
from paired import Progress, Ratio, interleave, ratio, stopwatch

from celery_allocator.ledger import Ledger

SIDES = ("plain", "plugin")


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    calls: int
    rounds: int
    tasks: int
    gap_rounds: int
    gap_tasks: int


FULL = Effort(calls=1000, rounds=10, tasks=400, gap_rounds=8, gap_tasks=40)
QUICK = Effort(calls=200, rounds=4, tasks=150, gap_rounds=3, gap_tasks=20)


@dataclass(frozen=True)
class Place:
    """Where a run keeps its things."""

    directory: Path
    celery_url: str
    redis_url: str

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url)


def measure_apply_async(place: Place, calls: int) -> dict[str, Ratio]:
    """Time of one ``apply_async`` of each kind over plain Celery's; nothing runs the tasks.

    Each call is undone before the next one, off the clock: the ledger, the queues and the subscriptions to results
    stay as small as they were.
    """
    client = place.client()
    sides: dict[str, Callable[[], float]] = {}
    for kind, ignored in (("", False), ("_no_result", True)):
        plain = make_app("plain", place.celery_url, str(place.directory))
        sides[f"plain{kind}"] = _caller(plain, client, None, ignored)
        for state, slots in (("granted", 1000), ("waiting", 1)):
            pool = f"bench-{state}"
            app = make_app("plugin", place.celery_url, str(place.directory), allocator_pool=pool)
            ledger = Ledger(place.client(), pool)
            offer(ledger, gpus=2, slots=slots)
            sides[f"{state}{kind}"] = _caller(app, client, ledger, ignored)
            if state == "waiting" and not ignored:
                for _ in range(2):
                    app.tasks["bench.noop"].apply_async(ignore_result=True)
    times = interleave(sides, calls, label="apply_async")
    for name in sides:
        print(f"  apply_async {name:18} median {statistics.median(times[name]) * 1e6:7.0f} µs")
    return {
        "apply_async_over_plain": ratio(times["granted"], times["plain"]),
        "apply_async_waiting_over_plain": ratio(times["waiting"], times["plain"]),
        "apply_async_no_result_over_plain": ratio(times["granted_no_result"], times["plain_no_result"]),
        "apply_async_waiting_no_result_over_plain": ratio(times["waiting_no_result"], times["plain_no_result"]),
    }


def _caller(app: Celery, client: redis.Redis, ledger: Ledger | None, ignored: bool) -> Callable[[], float]:
    task = app.tasks["bench.noop"]

    def measure() -> float:
        results: list[Any] = []
        seconds = stopwatch(lambda: results.append(task.apply_async(ignore_result=ignored)))
        result = results[0]
        if ledger is None:
            client.delete(app.conf.task_default_queue)
        else:
            for allocation in ledger.find(result.id):
                if allocation.queue:
                    ledger.release(allocation.allocation_id, publishes=False)
                    client.delete(allocation.queue)
                else:
                    ledger.cancel(allocation.allocation_id, publishes=False)
                    ledger.settle([allocation.allocation_id])
        if not ignored:
            result.forget()
        return seconds

    return measure


class Side:
    """A side's producer and the records of its workers."""

    def __init__(self, side: str, place: Place, running: list[Worker]) -> None:
        self.side = side
        self.app = make_app(side, place.celery_url, str(place.directory))
        self.records = place.directory / side
        self.running = running
        self._results: list[Any] = []

    def run(self, task: str, count: int, *args: Any) -> tuple[float, list[tuple[float, float]]]:
        """``count`` tasks through the workers: seconds from the first call to the last end, and the records."""
        before = len(read_records(self.records))
        began = time.time()
        self._results = [self.app.tasks[task].apply_async(args) for _ in range(count)]
        self._wait(before + count)
        records = read_records(self.records)[before:]
        for result in self._results:
            result.forget()
        return max(end for _, end in records) - began, records

    def ready(self, ledger: Ledger) -> None:
        """Wait until every worker consumes."""

        def all_answer() -> bool:
            for worker in self.running:
                worker.check()
            return len(self.app.control.ping(timeout=0.5) or ()) == len(self.running)

        wait_until(all_answer, f"the {self.side} workers")
        if self.side != "plain":
            wait_until(lambda: len(ledger.snapshot().workers) == len(self.running), "the workers to register")

    def _wait(self, total: int) -> None:
        def ended() -> bool:
            for worker in self.running:
                worker.check()
            return self.records.exists() and self.records.stat().st_size >= total * 16

        wait_until(ended, f"{total} tasks of {self.side} to end", deadline_s=120)


def measure_throughput(place: Place, effort: Effort, slots: int) -> Ratio:
    """Tasks per second, no-op tasks with stored results, over plain Celery's: two workers each."""
    with contextlib.ExitStack() as stack:
        sides = _start(stack, place, gpus=2, slots=slots)
        measures = {name: (lambda side=side: side.run("bench.noop", effort.tasks)[0]) for name, side in sides.items()}
        times = interleave(measures, effort.rounds, label="tasks per second", warmup=1)
    for name in SIDES:
        print(f"  {name:8} {effort.tasks / statistics.median(times[name]):7.0f} tasks/s")
    return ratio(times["plain"], times["plugin"], blocks=effort.rounds)


def measure_idle_gap(place: Place, effort: Effort) -> dict[str, list[float]]:
    """Idle gaps in ms of one GPU with one slot while tasks wait."""
    gaps: dict[str, list[float]] = {name: [] for name in SIDES}
    with contextlib.ExitStack() as stack:
        sides = _start(stack, place, gpus=1, slots=1, more=("--prefetch-multiplier", "1"))
        for side in sides.values():
            side.run("bench.hold", 3, 0.01)
        progress = Progress("idle gap", effort.gap_rounds)
        for round_number in range(effort.gap_rounds):
            for name in SIDES if round_number % 2 else reversed(SIDES):
                # Long enough that all of a round's tasks wait before the second one starts.
                _, records = sides[name].run("bench.hold", effort.gap_tasks, 0.03)
                ordered = sorted(records)
                gaps[name] += [(after[0] - before[1]) * 1000 for before, after in pairwise(ordered[2:])]
            progress.at(round_number + 1)
    for name in SIDES:
        low, middle, high = statistics.quantiles(gaps[name], n=4)
        print(f"  {name:8} idle gap median {middle:6.2f} ms, quartiles {low:.2f} … {high:.2f} ms")
    return gaps


def _start(
    stack: contextlib.ExitStack, place: Place, gpus: int, slots: int, more: tuple[str, ...] = ()
) -> dict[str, Side]:
    sides = {}
    for name in SIDES:
        running = stack.enter_context(workers(place.directory, place.celery_url, name, gpus, slots, *more))
        sides[name] = Side(name, place, running)
    ledger = Ledger(place.client())
    for side in sides.values():
        side.ready(ledger)
    return sides


def main() -> None:
    """Measure everything, print it, and last one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; under a minute")
    parser.add_argument("--only", choices=("apply_async", "tasks", "gap"), help="one of the three parts")
    cores = os.cpu_count() or 2
    parser.add_argument(
        "--slots",
        type=int,
        default=max(1, cores // 2),
        help="slots of each of the two workers (half the cores)",
    )
    args = parser.parse_args()
    effort = QUICK if args.quick else FULL
    found: dict[str, float] = {}
    print(f"two GPUs of {GPU_MB} MB, simulated; {args.slots} slots each; {cores} cores; one server for all")
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder, server(Path(folder)) as embedded:
        place = Place(Path(folder), embedded.celery_url, embedded.url)
        if args.only in (None, "apply_async"):
            for name, value in measure_apply_async(place, effort.calls).items():
                print(f"  {name}: {value}")
                found[name] = round(value.value, 3)
        if args.only in (None, "tasks"):
            value = measure_throughput(place, effort, args.slots)
            print(f"  tasks_per_s_over_plain: {value}")
            found["tasks_per_s_over_plain"] = round(value.value, 3)
        if args.only in (None, "gap"):
            gaps = measure_idle_gap(place, effort)
            found["idle_gap_ms"] = round(statistics.median(gaps["plugin"]), 3)
            found["plain_idle_gap_ms"] = round(statistics.median(gaps["plain"]), 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
