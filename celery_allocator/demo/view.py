"""One look at the running demo: what the ledger says, and how far the tasks are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, ClusterState


@dataclass(frozen=True)
class View:
    """The demo at one instant. ``names`` are the jobs' names by task id."""

    elapsed_s: float
    total: int
    done: int
    failed: int
    cluster: ClusterState
    held: tuple[Allocation, ...]
    waiting: tuple[Allocation, ...]
    names: Mapping[str, str]

    def name(self, allocation: Allocation) -> str:
        """The name of the job that an allocation is for."""
        return self.names.get(allocation.task_id, allocation.task_name)


@dataclass
class Watcher:
    """Looks at the ledger and remembers what passes: first estimates, and the most that waited."""

    ledger: Ledger
    names: Mapping[str, str]
    total: int
    started: float = field(default_factory=time.monotonic)
    #: The first estimate of its start (seconds since the epoch) that each waiting task was given, by task id.
    estimates: dict[str, float] = field(default_factory=dict)
    most_waiting: int = 0

    def look(self, done: int, failed: int) -> View:
        """The state now."""
        cluster = self.ledger.snapshot()
        waiting = self.ledger.queue(limit=1000)
        for allocation in waiting:
            if allocation.estimated_start_at is not None:
                self.estimates.setdefault(allocation.task_id, allocation.estimated_start_at)
        self.most_waiting = max(self.most_waiting, len(waiting))
        return View(
            elapsed_s=time.monotonic() - self.started,
            total=self.total,
            done=done,
            failed=failed,
            cluster=cluster,
            held=self.ledger.held(),
            waiting=waiting,
            names=self.names,
        )
