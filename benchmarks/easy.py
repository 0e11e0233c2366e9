"""Reference schedulers in plain Python, for jobs of processors on one machine: FCFS, and EASY backfilling.

EASY as Lifka (1995) and Feitelson & Weil describe it: jobs start in order of arrival; the first that does not fit gets
a reservation at the earliest time at which enough processors are free by the estimates of what runs; any later job may
start now if it ends before that time by its own estimate, or uses only processors that are left over then. Details as
in the simulator behind the published figures (Gaussier et al., SC'15): events one by one, submissions before endings;
a job whose estimate has expired counts as free. Run times are clipped to their estimates.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

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


def schedule(jobs: Sequence[Job], procs: int, *, backfill: bool = True, shortest_first: bool = False) -> list[float]:
    """When each job starts on ``procs`` processors. ``shortest_first``: the order in which jobs are tried for backfill.

    ``jobs`` are in order of arrival.
    """
    starts = [0.0] * len(jobs)
    machine = _Machine(jobs, procs, starts, backfill, shortest_first)
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
            heapq.heappush(endings, (now + jobs[started].run_s, started))
    return starts


class _Machine:
    """What runs, by the time at which it is expected to end, and what waits."""

    def __init__(
        self, jobs: Sequence[Job], procs: int, starts: list[float], backfill: bool, shortest_first: bool
    ) -> None:
        self.waiting: list[int] = []
        self._jobs = jobs
        self._procs = procs
        self._starts = starts
        self._backfill = backfill
        self._shortest_first = shortest_first
        #: (expected end, job), in that order.
        self._running: list[tuple[float, int]] = []

    def end(self, job: int) -> None:
        self._running.remove((self._starts[job] + self._jobs[job].estimate_s, job))

    def start(self, now: float) -> list[int]:
        """Start what may start; these jobs."""
        jobs, started = self._jobs, []
        free = self._procs - sum(jobs[i].procs for end, i in self._running if end > now)
        while self.waiting and jobs[self.waiting[0]].procs <= free:
            first = self.waiting.pop(0)
            self._begin(first, now)
            started.append(first)
            free -= jobs[first].procs
        if not self.waiting or not self._backfill or free <= 0:
            return started
        shadow, extra = self._reservation(now, free, jobs[self.waiting[0]].procs)
        others = self.waiting[1:]
        if self._shortest_first:
            others.sort(key=lambda i: (jobs[i].estimate_s, i))
        passed = set()
        for i in others:
            in_time = now + jobs[i].estimate_s <= shadow
            if jobs[i].procs <= free and (in_time or jobs[i].procs <= extra):
                self._begin(i, now)
                passed.add(i)
                free -= jobs[i].procs
                extra -= 0 if in_time else jobs[i].procs
                if free <= 0:
                    break
        if passed:
            self.waiting = [i for i in self.waiting if i not in passed]
        return [*started, *sorted(passed)]

    def _begin(self, job: int, now: float) -> None:
        self._starts[job] = now
        bisect.insort(self._running, (now + self._jobs[job].estimate_s, job))

    def _reservation(self, now: float, free: int, needed: int) -> tuple[float, int]:
        """When so many processors are free by the estimates, and how many are left over then."""
        at, running = now, iter(self._running)
        entry = next(running, None)
        while entry is not None:
            end = entry[0]
            released = 0
            while entry is not None and entry[0] == end:
                released += self._jobs[entry[1]].procs
                entry = next(running, None)
            if end <= now:
                continue
            free += released
            at = end
            if free >= needed:
                break
        return at, free - needed
