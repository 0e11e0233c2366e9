"""Reference schedulers in plain Python, for jobs of processors: FCFS, and EASY backfilling.

EASY as Lifka (1995) and Feitelson & Weil describe it: jobs start in order of arrival; the first that does not fit gets
a reservation at the earliest time at which enough processors are free by the estimates of what runs; any later job may
start now if it ends before that time by its own estimate, or uses only processors that are left over then. Details as
in the simulator behind the published figures (Gaussier et al., SC'15): events one by one, submissions before endings;
a job whose estimate has expired counts as free. Run times are clipped to their estimates.

With several nodes a job runs on one of them: the one with the fewest processors left over, of these the first. The
reservation is on the node that is the first to have enough; the other nodes are open to all.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: The bound of the bounded slowdown, in seconds.
BOUND_S = 10.0


@dataclass(frozen=True)
class Job:
    """One job: its arrival, length and estimate of it in seconds, and how many processors it takes."""

    submit_s: float
    run_s: float
    procs: int
    estimate_s: float


def bounded_slowdown(wait_s: float, run_s: float) -> float:
    """How many times longer a job took than it ran, lengths below 10 s counted as 10 s; at least 1."""
    return max(1.0, (wait_s + run_s) / max(run_s, BOUND_S))


def avebsld(jobs: Sequence[Job], starts: Sequence[float]) -> float:
    """Mean bounded slowdown."""
    slowdowns = (bounded_slowdown(start - job.submit_s, job.run_s) for job, start in zip(jobs, starts, strict=True))
    return sum(slowdowns) / len(jobs)


def schedule(
    jobs: Sequence[Job], nodes: Sequence[int], *, backfill: bool = True, shortest_first: bool = False
) -> list[float]:
    """When each job starts on ``nodes`` of so many processors. ``shortest_first``: jobs are tried for backfill so.

    ``jobs`` are in order of arrival.
    """
    starts = [0.0] * len(jobs)
    machine = _Machine(jobs, [_Node(procs) for procs in nodes], backfill, shortest_first)
    # A stable order: at one time, submissions come before endings.
    endings: list[tuple[float, int]] = []
    arrived = 0
    while arrived < len(jobs) or endings:
        if arrived < len(jobs) and (not endings or jobs[arrived].submit_s <= endings[0][0]):
            now = jobs[arrived].submit_s
            machine.waiting.append(arrived)
            arrived += 1
        else:
            now, ended = heapq.heappop(endings)
            machine.end(ended)
        for started in machine.start(now):
            starts[started] = now
            heapq.heappush(endings, (now + jobs[started].run_s, started))
    return starts


@dataclass
class _Node:
    """What runs on one node, by the time at which it is expected to end: (expected end, job, processors)."""

    procs: int
    running: list[tuple[float, int, int]] = field(default_factory=list)

    def free(self, now: float) -> int:
        return self.procs - sum(procs for end, _, procs in self.running if end > now)

    def enough(self, now: float, needed: int) -> tuple[float, int]:
        """When so many processors are free by the estimates, and how many are left over then."""
        free, at = self.free(now), now
        expected = [(end, procs) for end, _, procs in self.running if end > now]
        for i, (end, procs) in enumerate(expected):
            if free >= needed and (i == 0 or expected[i - 1][0] != end):
                break
            free, at = free + procs, end
        return at, free - needed


class _Machine:
    """The nodes, and what waits."""

    def __init__(self, jobs: Sequence[Job], nodes: list[_Node], backfill: bool, shortest_first: bool) -> None:
        self.waiting: list[int] = []
        self._jobs = jobs
        self._nodes = nodes
        self._backfill = backfill
        self._shortest_first = shortest_first
        self._where: dict[int, tuple[_Node, tuple[float, int, int]]] = {}

    def end(self, job: int) -> None:
        node, entry = self._where.pop(job)
        node.running.remove(entry)

    def start(self, now: float) -> list[int]:
        """Start what may start; these jobs."""
        jobs, started = self._jobs, []
        free = [node.free(now) for node in self._nodes]
        while self.waiting and (at := _tightest(free, range(len(free)), jobs[self.waiting[0]].procs)) is not None:
            started.append(self.waiting.pop(0))
            self._begin(started[-1], at, now, free)
        if not self.waiting or not self._backfill or not any(free):
            return started
        needed = jobs[self.waiting[0]].procs
        able = [i for i, node in enumerate(self._nodes) if node.procs >= needed]
        (shadow, extra), reserved = min(
            ((self._nodes[i].enough(now, needed), i) for i in able), key=lambda found: (found[0][0], found[1])
        )
        others = self.waiting[1:]
        if self._shortest_first:
            others.sort(key=lambda i: (jobs[i].estimate_s, i))
        passed = set()
        for i in others:
            job = jobs[i]
            in_time = now + job.estimate_s <= shadow
            open_to_it = (n for n in range(len(free)) if n != reserved or in_time or job.procs <= extra)
            at = _tightest(free, open_to_it, job.procs)
            if at is not None:
                self._begin(i, at, now, free)
                passed.add(i)
                extra -= job.procs if at == reserved and not in_time else 0
                if not any(free):
                    break
        self.waiting = [i for i in self.waiting if i not in passed] if passed else self.waiting
        return [*started, *sorted(passed)]

    def _begin(self, job: int, at: int, now: float, free: list[int]) -> None:
        entry = (now + self._jobs[job].estimate_s, job, self._jobs[job].procs)
        bisect.insort(self._nodes[at].running, entry)
        self._where[job] = self._nodes[at], entry
        free[at] -= self._jobs[job].procs


def _tightest(free: Sequence[int], among: Iterable[int], needed: int) -> int | None:
    """Of the nodes with enough free processors the one with the fewest; ``None``: there is none."""
    return min((i for i in among if free[i] >= needed), key=lambda i: (free[i], i), default=None)
