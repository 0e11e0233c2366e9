"""Replaying a trace: its arrivals and durations through the ledger's own scripts, on a clock that jumps.

Every event happens at its own virtual time: a submission, the ending of a task, a maintenance tick while tasks wait.
A granted task starts at the moment of its grant. Of submissions and endings at one time, submissions come first.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import redis

from celery_allocator.errors import UnsatisfiableError
from celery_allocator.ledger import Grant, Ledger, Options
from celery_allocator.model import Allocation, NodeInventory, Quota, State, Strategy
from celery_allocator.simulator.cluster import INCARNATION, Cluster, classes_of, worker_of
from celery_allocator.simulator.trace import TraceTask

#: When every simulation begins, in seconds since the epoch: two runs have the same times in their ledgers.
EPOCH_S = 1_800_000_000.0
#: Room for any trace; only the newest events are read.
OPTIONS = Options(max_waiting=10_000_000, events_maxlen=10_000)
#: Events read at a time, more than one ending makes.
_EVENTS = 100_000
#: Ticks that are waited for, at the end, for what waits beside nothing that runs.
_PATIENCE = 100
#: Times at which fragmentation is looked at, spread evenly over the submissions.
_LOOKS = 100


@dataclass(slots=True)
class TaskRun:
    """What became of one task of the trace. Times in seconds of the trace's own clock.

    ``position`` in line, and the dates, are those told at submission; ``None`` and 0 for what was granted at once.
    ``naive_s``: the date by the rule position × mean run time ÷ tasks running. ``never``: no node could hold it.
    """

    task: TraceTask
    start_s: float | None = None
    end_s: float | None = None
    position: int = 0
    p50_s: float | None = None
    p90_s: float | None = None
    naive_s: float | None = None
    never: bool = False

    @property
    def wait_s(self) -> float | None:
        """Seconds between submission and start."""
        return None if self.start_s is None else self.start_s - self.task.submit_s


@dataclass(frozen=True, slots=True)
class Moment:
    """The cluster after an event: how many wait, and what is in use (MB of GPU memory, cores)."""

    at_s: float
    waiting: int
    gpu_used_mb: int
    cores_used: int


@dataclass
class Replayed:
    """A trace that has been replayed: its tasks in order of submission, the cluster over time, fragmentation seen."""

    cluster: Cluster
    runs: list[TaskRun] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    fragmentation: list[float] = field(default_factory=list)


class Replay:
    """One simulation on one server. ``client``: of a private server, whose pool ``pool`` is empty.

    ``seed`` orders what the trace leaves open: tasks submitted at the same time, and endings at the same time. 0: by
    their order in the trace. ``quotas``: weights and caps of tenants.
    ``speed``: virtual seconds per second, ``None``: as fast as it can. ``tick_s``: virtual
    seconds between maintenance ticks while tasks wait. ``on_progress`` is called with the events done and all there
    are.
    """

    def __init__(
        self,
        client: redis.Redis,
        nodes: Sequence[NodeInventory],
        *,
        strategy: Strategy = Strategy.BEST_FIT,
        options: Options = OPTIONS,
        quotas: Mapping[str, Quota] | None = None,
        seed: int = 0,
        speed: float | None = None,
        tick_s: float = 300.0,
        pool: str = "simulation",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.now_s = 0.0
        self.ledger = Ledger(client, pool, clock=lambda: EPOCH_S + self.now_s, options=options)
        self.cluster = Cluster(nodes)
        self._strategy = strategy
        self._quotas = quotas or {}
        self._random = random.Random(seed) if seed else None  # noqa: S311 (an order, not a secret)
        self._speed = speed
        self._tick_s = tick_s
        self._told = on_progress or (lambda _done, _all: None)
        self._runs: list[TaskRun] = []
        self._held: dict[int, Allocation] = {}
        #: (time, order among equals, task): what ends when.
        self._endings: list[tuple[float, float, int]] = []
        self._waiting = 0
        self._ended = 0
        self._ran_s = 0.0
        self._ticked_s = 0.0
        self._began: tuple[float, float] = (0.0, 0.0)

    def run(self, tasks: Sequence[TraceTask]) -> Replayed:
        """Replay ``tasks``, which are in order of submission, until none of them runs any more."""
        found = Replayed(self.cluster)
        tasks = self._ordered(tasks)
        if not tasks:
            return found
        self._runs = found.runs = [TaskRun(task) for task in tasks]
        self.now_s = self._ticked_s = tasks[0].submit_s
        self._began = (time.monotonic(), self.now_s)
        self.cluster.register(self.ledger)
        self.ledger.load_tenants(self._quotas)
        classes = classes_of(task.requirements for task in tasks)
        first, last = tasks[0].submit_s, tasks[-1].submit_s
        looks = [first + (last - first) * (i + 0.5) / _LOOKS for i in range(_LOOKS)] if last > first else []
        looks.reverse()
        arrived = done = 0
        while arrived < len(tasks) or self._endings or self._tick_until(self.now_s + _PATIENCE * self._tick_s):
            arrives = arrived < len(tasks) and (not self._endings or tasks[arrived].submit_s <= self._endings[0][0])
            at = tasks[arrived].submit_s if arrives else self._endings[0][0]
            while looks and looks[-1] <= at:
                looks.pop()
                share = self.cluster.fragmentation(classes)
                if share is not None:
                    found.fragmentation.append(share)
            if self._tick_until(at):
                continue  # something was granted meanwhile, and may end before
            self._go_to(at)
            if arrives:
                self._submit(arrived)
                arrived += 1
            else:
                self._end(heapq.heappop(self._endings)[2])
            done += 1
            found.moments.append(Moment(self.now_s, self._waiting, self.cluster.gpu_used_mb, self.cluster.cores_used))
            self._told(done, 2 * len(tasks))
        self._told(2 * len(tasks), 2 * len(tasks))
        return found

    # --- the events

    def _submit(self, i: int) -> None:
        run = self._runs[i]
        task = run.task
        name, need = _name(i), task.requirements
        try:
            submitted = self.ledger.submit(name, name, task.name, need, strategy=self._strategy)
        except UnsatisfiableError:
            run.never = True
            return
        allocation = submitted.allocation
        if allocation.state is State.GRANTED:
            assert allocation.node is not None and allocation.device_id is not None
            self._start(i, allocation.token, worker_of(allocation.node, allocation.device_id))
            return
        assert allocation.state is State.WAITING, allocation
        self._waiting += 1
        run.position = allocation.queue_position
        run.p50_s = self._trace_time(allocation.estimated_start_at)
        run.p90_s = self._trace_time(getattr(allocation, "estimated_start_p90_at", None))
        if self._ended and self._held:
            run.naive_s = self.now_s + run.position * self._ran_s / self._ended / len(self._held)

    def _start(self, i: int, token: int, worker: str) -> None:
        name, run = _name(i), self._runs[i]
        allocation = self.ledger.start(name, token, worker, INCARNATION, name, False)
        run.start_s = self.now_s
        run.end_s = self.now_s + run.task.duration_s
        self._held[i] = allocation
        self.cluster.take(allocation)
        heapq.heappush(self._endings, (run.end_s, self._random.random() if self._random else i, i))

    def _end(self, i: int) -> None:
        allocation = self._held.pop(i)
        released = self.ledger.release(allocation.allocation_id, allocation.token, "success")
        assert released.done, released
        self.cluster.give_back(allocation)
        self._ended += 1
        self._ran_s += self._runs[i].task.duration_s
        self._granted(released.grants)

    def _granted(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            self._waiting -= 1
            self._start(_number(grant.allocation_id), grant.token, grant.queue)

    # --- time

    def _tick_until(self, at: float) -> bool:
        """Tick as often as is due before ``at`` while tasks wait. True: something was granted."""
        if not self._waiting:
            self._ticked_s = max(self._ticked_s, at)
            return False
        while self._ticked_s + self._tick_s < at:
            self._go_to(max(self.now_s, self._ticked_s + self._tick_s))
            self._ticked_s = self.now_s
            running = len(self._held)
            self._granted(self.ledger.tick().grants)
            if len(self._held) > running:
                return True
        return False

    def _go_to(self, at: float) -> None:
        if self._speed is not None:
            began, origin = self._began
            time.sleep(max(0.0, began + (at - origin) / self._speed - time.monotonic()))
        self.now_s = at

    def _ordered(self, tasks: Sequence[TraceTask]) -> list[TraceTask]:
        ordered = sorted(tasks, key=lambda task: task.submit_s)
        if self._random is None:
            return ordered
        keys = [(task.submit_s, self._random.random(), i) for i, task in enumerate(ordered)]
        return [ordered[i] for _, _, i in sorted(keys)]

    @staticmethod
    def _trace_time(at: float | None) -> float | None:
        return None if at is None else round(at - EPOCH_S, 3)


def _name(i: int) -> str:
    return f"task-{i}"


def _number(name: str) -> int:
    return int(name.removeprefix("task-"))
