"""Waits, dates and starvation: traces through the ledger's own scripts, beside reference schedulers in plain Python.

Traces, both cut from nothing but their columns:

kth     KTH-SP2 (28,481 jobs): one node of 100 cores, a job's processors are its cores; run times are clipped to the
        requested time, which is its ``expected_runtime_s``.
itp_5   cluster 5 of the itp traces (3,629 jobs of at most 8 GPUs): four nodes of 8 cores, a job's GPUs are its cores.
        Nobody requested a time there. Where run times are stated, they are the real ones, for EASY too.

``learned``: run times are not stated; a job has a size instead, by which the ledger learns them: for kth the requested
time and the processors, each rounded up to a power of two; for itp_5 the GPUs, likewise, and the order of magnitude of
the run time in seconds, as a caller tells who knows minutes from hours. ``blind``: for itp_5 the GPUs alone.
"""

from __future__ import annotations

import csv
import gzip
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import easy
import packing
import redis
from paired import Progress

from celery_allocator.ledger import Options
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements
from celery_allocator.simulator import OPTIONS, Replay, TaskRun, TraceTask
from celery_allocator.simulator.figures import LARGEST, dates, quantile

KTH_CORES = 100
ITP_NODES, ITP_GPUS = 4, 8
#: Seconds for which the adversary goes on, and the bounds of its stream.
STREAM_S, SMALL_S, EVERY_S, BIG_AT_S = 600.0, 10.0, 2.0, 30.0
#: Part of a trace that trains the estimates; the rest is scored.
TRAINS = 0.5


@dataclass(frozen=True)
class Trace:
    """Jobs on nodes of so many cores."""

    name: str
    jobs: list[easy.Job]
    nodes: list[int]
    #: The size of each job, for learning.
    sizes: list[str]

    def tasks(self, *, stated: bool) -> list[TraceTask]:
        """As the simulator takes them; run times stated or to be learned."""
        return [
            TraceTask(
                job.submit_s,
                job.run_s,
                Requirements(0, job.procs, expected_runtime_s=max(1, math.ceil(job.estimate_s)))
                if stated
                else Requirements(0, job.procs, size=size),
                self.name,
            )
            for job, size in zip(self.jobs, self.sizes, strict=True)
        ]

    def inventory(self) -> list[NodeInventory]:
        """The nodes as the ledger takes them."""
        return [NodeInventory(f"{self.name}-{i}", tuple(range(procs)), 0) for i, procs in enumerate(self.nodes)]

    def first(self, limit: int | None) -> Trace:
        """Only the first so many jobs."""
        return replace(self, jobs=self.jobs[:limit], sizes=self.sizes[:limit])


@dataclass(frozen=True)
class Score:
    """What a scheduler made of a trace. Waits in seconds; ``largest_s``: the longest of the largest 5 %."""

    slowdown: float
    p95_s: float
    longest_s: float
    largest_s: float


def kth(path: Path) -> Trace:
    """The KTH-SP2 trace from a file that is not part of this project."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    jobs, sizes = [], []
    for row in rows:
        requested = int(row["req_s"])
        jobs.append(easy.Job(int(row["submit_s"]), min(int(row["run_s"]), requested), int(row["procs"]), requested))
        sizes.append(f"{_power(requested)}s-{_power(int(row['procs']))}p")
    return Trace("kth", jobs, [KTH_CORES], sizes)


def itp_5(*, blind: bool = False) -> Trace:
    """Cluster 5 of the itp traces. ``blind``: sizes say nothing of the run time."""
    rows = packing.rows("itp_5.csv.gz")
    jobs = [
        easy.Job(int(row["submit_s"]), int(row["duration_s"]), int(row["gpus"]), int(row["duration_s"])) for row in rows
    ]
    sizes = [f"{_power(job.procs)}g" if blind else f"{_power(job.procs)}g-{_magnitude(job.run_s)}" for job in jobs]
    return Trace("itp_5_blind" if blind else "itp_5", jobs, [ITP_GPUS] * ITP_NODES, sizes)


def _power(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def _magnitude(seconds: float) -> str:
    return f"1e{int(math.log10(max(1.0, seconds)))}s"


# --- waits


def reference(trace: Trace, **how: bool) -> Score:
    """A scheduler of :mod:`easy` on a trace."""
    starts = easy.schedule(trace.jobs, trace.nodes, **how)
    waits = [start - job.submit_s for start, job in zip(starts, trace.jobs, strict=True)]
    return _score(trace, waits)


def ours(client: redis.Redis, trace: Trace, options: Options, *, stated: bool) -> tuple[Score, list[TaskRun]]:
    """The ledger on a trace."""
    client.flushall()
    tasks = trace.tasks(stated=stated)
    bar = Progress(f"{trace.name}, {'stated' if stated else 'learned'}, {told(options)}", 2 * len(tasks))
    replayed = Replay(client, trace.inventory(), options=options, on_progress=lambda done, _: bar.at(done)).run(tasks)
    unstarted = sum(run.start_s is None for run in replayed.runs)
    if unstarted:
        raise RuntimeError(f"{unstarted} jobs of {trace.name} never started")
    return _score(trace, [run.wait_s or 0.0 for run in replayed.runs]), replayed.runs


def _score(trace: Trace, waits: Sequence[float]) -> Score:
    ordered = sorted(waits)
    sizes = sorted((job.procs for job in trace.jobs), reverse=True)
    least = sizes[math.ceil(LARGEST * len(sizes)) - 1]
    largest = max(wait for wait, job in zip(waits, trace.jobs, strict=True) if job.procs >= least)
    slowdown = statistics.fmean(
        easy.bounded_slowdown(wait, job.run_s) for wait, job in zip(waits, trace.jobs, strict=True)
    )
    return Score(slowdown, quantile(ordered, 0.95), ordered[-1], largest)


def backfills() -> dict[str, Options]:
    """The ledger's ways to let tasks pass, the default first."""
    if "backfill" not in {field.name for field in fields(Options)}:
        return {"greedy": OPTIONS}
    return {how: replace(OPTIONS, backfill=how) for how in ("easy", "greedy")}


def told(options: Options) -> str:
    """The way to let tasks pass, in a word."""
    return str(getattr(options, "backfill", "greedy"))


# --- dates


@dataclass(frozen=True)
class Dated:
    """The score of the dates told to tasks of the held-out part."""

    scored: int
    coverage: float | None
    error_s: float | None
    naive_s: float | None

    @property
    def over_naive(self) -> float | None:
        """Median error over the naive rule's."""
        return self.error_s / self.naive_s if self.error_s is not None and self.naive_s else None


def second_half(runs: Sequence[TaskRun]) -> Sequence[TaskRun]:
    """The part that is scored."""
    return runs[int(TRAINS * len(runs)) :]


def held_out(runs: Sequence[TaskRun]) -> Dated:
    """Dates of the tasks after the first half of the trace."""
    found = dates(second_half(runs))
    return Dated(found.scored, found.p90_coverage, found.median_error_s, found.naive_median_error_s)


# --- the adversary


@dataclass(frozen=True)
class Adversarial:
    """When the big task started after its submission, and when the stream of small ones ended after that."""

    big_wait_s: float
    stream_s: float

    @property
    def starved(self) -> bool:
        """The big task started only once no small one came any more."""
        return self.big_wait_s >= self.stream_s


def adversarial(client: redis.Redis, options: Options, *, stated: bool) -> Adversarial:
    """One GPU, never empty: small tasks of 10 s come every 2 s for ten minutes, and after 30 s one of the whole GPU.

    Without ``stated`` run times nothing can be learned either, as every task has a name of its own: then the bound is
    that of passing (``max_bypass`` times or ``max_bypass_s``), and what runs by then.
    """
    client.flushall()
    small = Requirements(2_000, 1, expected_runtime_s=int(SMALL_S) if stated else 0)
    big = Requirements(16_000, 1, expected_runtime_s=60 if stated else 0)
    tasks = [
        TraceTask(i * EVERY_S, SMALL_S, small, "small" if stated else f"small-{i}")
        for i in range(int(STREAM_S / EVERY_S))
    ]
    tasks.append(TraceTask(BIG_AT_S, 60.0, big, "big"))
    tasks.sort(key=lambda task: task.submit_s)
    there = [NodeInventory("n", tuple(range(64)), 0, (DeviceInventory("gpu_0", 0, "GPU-n-0", "simulated", 16_000),))]
    replayed = Replay(client, there, options=options, tick_s=1.0).run(tasks)
    found = next(run for run in replayed.runs if run.task.name == "big")
    if found.wait_s is None:
        raise RuntimeError("the big task never started")
    return Adversarial(found.wait_s, STREAM_S - EVERY_S - BIG_AT_S)
