"""Affinity: tasks of a few models on GPUs that keep one loaded, through the ledger's own scripts, with it and without.

A pool of GPUs, one slot each. A task is of one of ``MODELS`` models, by Zipf's law (the k-th is asked for 1/k as often
as the first), arrives by a Poisson process and computes for a time that is drawn (log-normal). Where the GPU's process
has another model loaded than its own, loading comes first: ``LOAD`` times as long as a task computes on average. All
times are simulated; what is loaded where is what the processes would have, and not what the ledger thinks.

The same tasks run in all variants of a round: without affinity; with it and no wait, a fifth of a load, a load, two.
``busy``: how much of the GPUs' time computing and loading would take if every task had to load. Beyond 1 the pool is
overloaded without affinity, and the line grows for as long as tasks arrive.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from dataclasses import dataclass, replace

import redis
from paired import Progress

from celery_allocator.ledger import Grant, Ledger, Options
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements
from celery_allocator.simulator import OPTIONS, private_server

GPUS, MODELS = 16, 24
COMPUTE_S, LOAD = 10.0, 3.0
#: Spread of the time that a task computes: the logarithm's standard deviation.
SPREAD = 0.5
BUSY = (0.5, 0.7, 0.9, 1.1)
#: Waits that are tried, in loads.
WAITS = (0.0, 0.2, 1.0, 2.0)
TICK_S = 1.0
_EPOCH_S = 1_800_000_000.0
_FOR_GOOD_S = 1e9


@dataclass(frozen=True)
class Task:
    """One task; seconds."""

    arrives: float
    model: int
    computes: float


@dataclass(frozen=True)
class Outcome:
    """Completion times, seconds from arrival to end; share of tasks that found their model loaded."""

    mean_s: float
    p95_s: float
    hits: float
    longest_s: float


def tasks(count: int, busy: float, seed: int) -> list[Task]:
    """Arrivals, models and computing times."""
    chance = random.Random(seed)  # noqa: S311 (a workload, not a secret)
    weights = [1 / (k + 1) for k in range(MODELS)]
    rate = busy * GPUS / (COMPUTE_S * (1 + LOAD))
    at, found = 0.0, []
    for _ in range(count):
        at += chance.expovariate(rate)
        computes = COMPUTE_S * chance.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        found.append(Task(at, chance.choices(range(MODELS), weights)[0], computes))
    return found


class Run:
    """One variant: a ledger on a clock that jumps from event to event."""

    def __init__(self, client: redis.Redis, options: Options, *, affinity: bool, slots: int = 1) -> None:
        client.flushall()
        self.now = 0.0
        self.ledger = Ledger(client, "affinity", clock=lambda: _EPOCH_S + self.now, options=options)
        self.affinity = affinity
        for i in range(GPUS):
            gpu = DeviceInventory("gpu_0", 0, f"GPU-{i}", "simulated", 24_000)
            self.ledger.register_node(NodeInventory(f"n{i:02}", tuple(range(4)), 64_000, (gpu,)), _FOR_GOOD_S)
            self.ledger.register_worker(
                f"w{i}", "one", f"n{i:02}", "gpu_0", slots=slots, queue=f"w{i}", lease_s=_FOR_GOOD_S
            )
        self._loaded: dict[str, int] = {}
        self._ends: list[tuple[float, int]] = []
        self._hits = 0

    def run(self, given: list[Task], label: str) -> Outcome:
        """All tasks, to the last end."""
        self.given = given
        progress, took, at, ended, ticked = Progress(label, len(given)), [0.0] * len(given), 0, 0, 0.0
        while at < len(given) or self._ends:
            arrival = given[at].arrives if at < len(given) else float("inf")
            ending = self._ends[0][0] if self._ends else float("inf")
            if at - ended > len(self._ends) and min(arrival, ending) > max(ticked + TICK_S, self.now):
                ticked = self.now = max(ticked + TICK_S, self.now)  # something waits
                self._begin(self.ledger.tick().grants)
            elif arrival <= ending:
                self.now = arrival
                self._submit(at)
                at += 1
            else:
                self.now, i = heapq.heappop(self._ends)
                took[i], ended = self.now - given[i].arrives, ended + 1
                self._begin(self.ledger.release(f"t{i}", None, "success").grants)
                progress.at(ended)
        if not all(took):
            raise RuntimeError(f"{took.count(0.0)} tasks never ended")
        ordered = sorted(took)
        return Outcome(statistics.fmean(took), ordered[int(0.95 * len(ordered))], self._hits / len(given), ordered[-1])

    def _submit(self, i: int) -> None:
        word = f"model-{self.given[i].model}"
        asked = Requirements(16_000, 1, 0, affinity=word if self.affinity else "")
        made = self.ledger.submit(f"t{i}", f"task {i}", f"run.{word}", asked, message=b"m").allocation
        if made.granted_at is not None:
            self._start(i, made.token, f"{made.node}")

    def _begin(self, grants: tuple[Grant, ...]) -> None:
        for grant in grants:
            held = self.ledger.get(grant.allocation_id)
            self._start(int(grant.allocation_id[1:]), grant.token, f"{held.node}")

    def _start(self, i: int, token: int, node: str) -> None:
        self.ledger.start(f"t{i}", token, f"w{int(node[1:])}", "one", "once", repeatable=False)
        task = self.given[i]
        hit = self._loaded.get(node) == task.model
        self._hits += hit
        self._loaded[node] = task.model
        heapq.heappush(self._ends, (self.now + task.computes + (0 if hit else LOAD * COMPUTE_S), i))


def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks, one round, two loads")
    parser.add_argument("--tasks", type=int, help="tasks of a run")
    parser.add_argument("--rounds", type=int, help="rounds, each with tasks of its own")
    asked = parser.parse_args()
    count = asked.tasks or (400 if asked.quick else 2000)
    rounds = asked.rounds or (1 if asked.quick else 3)
    loads = BUSY[1::2] if asked.quick else BUSY
    found: dict[str, dict[str, dict[str, float]]] = {}
    with private_server() as client:
        for busy in loads:
            found[str(busy)] = _compare(client, count, busy, rounds)
            _print(busy, found[str(busy)])
    print(json.dumps({"tasks": count, "rounds": rounds, "busy": found}))


def _compare(client: redis.Redis, count: int, busy: float, rounds: int) -> dict[str, dict[str, float]]:
    outcomes: dict[str, list[Outcome]] = {}
    for seed in range(1, rounds + 1):
        given = tasks(count, busy, seed)
        label = f"busy {busy}, round {seed}/{rounds}"
        outcomes.setdefault("none", []).append(Run(client, OPTIONS, affinity=False).run(given, f"{label}, without"))
        for wait in WAITS:
            options = replace(OPTIONS, affinity_wait_s=wait * LOAD * COMPUTE_S)
            run = Run(client, options, affinity=True)
            outcomes.setdefault(f"{wait:g}", []).append(run.run(given, f"{label}, wait {wait:g}"))
    base = outcomes["none"]

    def ratio(some: list[Outcome], what: str) -> float:
        return round(statistics.fmean(getattr(o, what) / getattr(b, what) for o, b in zip(some, base, strict=True)), 3)

    return {
        name: {
            "mean_s": round(statistics.fmean(o.mean_s for o in some), 1),
            "ratio": ratio(some, "mean_s"),
            "p95_ratio": ratio(some, "p95_s"),
            "longest_ratio": ratio(some, "longest_s"),
            "hits": round(statistics.fmean(o.hits for o in some), 3),
        }
        for name, some in outcomes.items()
    }


def _print(busy: float, rows: dict[str, dict[str, float]]) -> None:
    print(f"\nbusy {busy}: {GPUS} GPUs, {MODELS} models, a load is {LOAD:g} times what a task computes")
    print(f"{'waits (loads)':>14} {'mean s':>9} {'ratio':>7} {'p95':>7} {'longest':>8} {'hits':>6}")
    for name, row in rows.items():
        print(
            f"{name:>14} {row['mean_s']:>9.1f} {row['ratio']:>7.2f} {row['p95_ratio']:>7.2f} "
            f"{row['longest_ratio']:>8.2f} {row['hits']:>6.0%}"
        )


if __name__ == "__main__":
    main()
