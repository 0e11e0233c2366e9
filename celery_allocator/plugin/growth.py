"""What tasks have added to what their processes hold: the part of it that is theirs to answer for.

A child of the pool runs one task after another and keeps what the framework caches; the next task is not to blame for
that. So what a process held while it was idle is not counted. Of RAM, only what is the process's own counts: after a
fork it shares pages with the worker, which its resident memory counts as well.
"""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from celery_allocator.plugin.processes import born

_MB = 2**20

#: A task that runs: its allocation's id, and its token.
Run = tuple[str, int]


@dataclass(frozen=True)
class Family:
    """A process and all that descend from it, and what they hold in MB; ``None``: that cannot be told.

    ``ram_mb`` is resident memory, shared pages included.
    """

    pids: tuple[int, ...]
    gpu_memory_mb: int | None
    ram_mb: int | None


@dataclass(frozen=True)
class Grown:
    """A process at a look. ``runs``: what it runs (nothing: it is idle).

    ``gpu_before_mb`` and ``ram_before_mb``: what it held before it began what it runs, or holds now if it is idle.
    """

    family: Family
    runs: frozenset[Run]
    since: str | None
    gpu_before_mb: int | None
    ram_before_mb: int

    @property
    def gpu_added_mb(self) -> int | None:
        """GPU memory that what it runs has added; ``None``: that cannot be told."""
        if self.family.gpu_memory_mb is None or self.gpu_before_mb is None:
            return None
        return max(0, self.family.gpu_memory_mb - self.gpu_before_mb)

    def ram_added_mb(self, above: int) -> int | None:
        """RAM that what it runs has added; ``None``: it is gone. Measured closely only if it may exceed ``above``."""
        if self.family.ram_mb is None:
            return None
        most = self.family.ram_mb - self.ram_before_mb
        return max(0, most if most <= above else own_ram_mb(self.family.pids) - self.ram_before_mb)


@dataclass(frozen=True)
class _Begun:
    """A task that a process began. What it was promised is what it may have left there; ``inf``: nobody knows."""

    run: Run | None
    gpu_memory_mb: float = math.inf
    ram_mb: float = math.inf


class Growth:
    """Follows processes from look to look. :meth:`began` is thread-safe; :meth:`look` is for one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Since the process was looked at.
        self._begun: dict[int, list[_Begun]] = defaultdict(list)
        self._last: dict[int, Grown] = {}

    def began(self, pid: int, run: Run | None = None, *, gpu_memory_mb: int = 0, ram_mb: int = 0) -> None:
        """Process ``pid`` has begun a task, which was promised so much (0: that is not accounted)."""
        begun = _Begun(run, gpu_memory_mb or math.inf, ram_mb or math.inf)
        with self._lock:
            self._begun[pid].append(begun)

    def look(self, runs: Mapping[int, frozenset[Run]], families: Mapping[int, Family]) -> dict[int, Grown]:
        """What each process holds now, and held before what it runs. ``runs``: by process; empty for an idle one."""
        with self._lock:
            begun = {pid: self._begun.pop(pid, []) for pid in runs}
            for pid in [pid for pid in self._begun if not psutil.pid_exists(pid)]:
                del self._begun[pid]
        found = {
            pid: self._grown(pid, now, families[pid], [one for one in begun[pid] if one.run not in now])
            for pid, now in runs.items()
        }
        # One may be missing this time: given a task that it has not begun, or one that is not the allocator's.
        missing = {pid: last for pid, last in self._last.items() if pid not in found and psutil.pid_exists(pid)}
        self._last = {**missing, **found}
        return found

    def _grown(self, pid: int, runs: frozenset[Run], family: Family, others: Sequence[_Begun]) -> Grown:
        """``others``: what it began since the last look, beside what it runs now."""
        last, since, gpu_mb = self._last.get(pid), born(pid), family.gpu_memory_mb
        if last is not None and last.since != since:
            last = None
        known = last is not None and bool(last.runs & runs or not (last.runs or others))
        if last is not None and known and runs:
            # The same, perhaps with others (in a pool of threads), or the first after it was seen idle.
            gpu, ram = last.gpu_before_mb, last.ram_before_mb
        elif last is not None and known:  # still idle: what it has of the GPU others may take, but its RAM stays
            gpu, ram = gpu_mb, last.ram_before_mb
        elif not runs or (last is None and pid == os.getpid()):
            gpu, ram = gpu_mb, own_ram_mb(family.pids)
        else:
            # Others were there before it, unseen at their end: it is taken to have found as much as they can have left.
            before = last.family if last is not None else Family((), 0, 0)
            left = max(before.gpu_memory_mb or 0, *(one.gpu_memory_mb for one in others), 0)
            gpu = None if gpu_mb is None or before.gpu_memory_mb is None else int(min(gpu_mb, left))
            left = max(before.ram_mb or 0, *(one.ram_mb for one in others), 0)
            ram = int(min(own_ram_mb(family.pids), left)) if left else 0
        return Grown(family, runs, since, gpu, ram)


def own_ram_mb(pids: Iterable[int]) -> int:
    """RAM that would be free if these processes ended, in MB: at least so much.

    The sum of what each has for itself (its USS); or of its share in what it has with others (PSS), less all that the
    worker's main process has: then what they have among themselves counts, too, as with processes that load data.
    """
    own = shared = 0
    ours = set(pids)
    workers = 0 if os.getpid() in ours else psutil.Process().memory_info().rss
    for pid in ours:
        try:
            memory = psutil.Process(pid).memory_full_info()
        except psutil.Error:  # just ended
            continue
        # A kernel without /proc/…/smaps (gVisor has none) tells neither.
        own += getattr(memory, "uss", max(0, memory.rss - workers))
        shared += getattr(memory, "pss", 0)
    return max(own, shared - workers) // _MB
