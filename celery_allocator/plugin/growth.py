"""What tasks have added to what their processes hold: the part of it that is theirs to answer for.

A child of the pool runs one task after another and keeps what the framework caches; the next task is not to blame for
that. So what a process held when the task began is not counted: the process has told that (``found.py``), or it was
seen idle, or else a guess has to do, which rather lets one too many pass. Of RAM, only what is the process's own
counts: after a fork it shares pages with the worker, which its resident memory counts as well.
"""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from celery_allocator.plugin.found import Held, Run
from celery_allocator.plugin.processes import born, own_ram_mb

_NOT_TOLD = Held()
_NOTHING_TOLD: Mapping[Run, Held] = {}


@dataclass(frozen=True)
class Family:
    """A process and all that descend from it, and what they hold in MB; ``None``: that cannot be told.

    ``gpu_memory_mb``: of each GPU that was looked at, by its UUID. ``ram_mb`` is resident memory, shared pages
    included.
    """

    pids: tuple[int, ...]
    gpu_memory_mb: Mapping[str, int | None]
    ram_mb: int | None


@dataclass(frozen=True)
class Grown:
    """A process at a look. ``runs``: what it runs (nothing: it is idle).

    ``gpu_before_mb`` and ``ram_before_mb``: what it held before it began what it runs, or holds now if it is idle.
    """

    family: Family
    runs: frozenset[Run]
    since: str | None
    gpu_before_mb: Mapping[str, int | None]
    ram_before_mb: int

    @property
    def gpu_added_mb(self) -> dict[str, int | None]:
        """Memory of each GPU that what it runs has added; ``None``: that cannot be told."""
        before = self.gpu_before_mb
        return {
            uuid: None if now is None or (then := before[uuid]) is None else max(0, now - then)
            for uuid, now in self.family.gpu_memory_mb.items()
        }

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

    def look(
        self,
        runs: Mapping[int, frozenset[Run]],
        families: Mapping[int, Family],
        told: Mapping[Run, Held] = _NOTHING_TOLD,
    ) -> dict[int, Grown]:
        """What each process holds now, and held before what it runs. ``runs``: by process; empty for an idle one.

        ``told``: what processes have told of their beginnings.
        """
        with self._lock:
            begun = {pid: self._begun.pop(pid, []) for pid in runs}
            for pid in [pid for pid in self._begun if not psutil.pid_exists(pid)]:
                del self._begun[pid]
        found = {}
        for pid, now in runs.items():
            # Of several in one process none can tell what is of the others.
            held = told.get(next(iter(now)), _NOT_TOLD) if len(now) == 1 else _NOT_TOLD
            past = _Past(self._last.get(pid), born(pid), now, [one for one in begun[pid] if one.run not in now])
            found[pid] = _grown(pid, past, families[pid], held)
        # One may be missing this time: given a task that it has not begun, or one that is not the allocator's.
        missing = {pid: last for pid, last in self._last.items() if pid not in found and psutil.pid_exists(pid)}
        self._last = {**missing, **found}
        return found


class _Past:
    """What main knows of a process that runs ``runs`` now.

    ``others``: what it began beside that since the last look. ``last``: as it was then. ``seen``: the same, if what it
    held before what it runs was seen: it ran (some of) the same, or nothing, and nothing in between.
    """

    def __init__(self, last: Grown | None, since: str | None, runs: frozenset[Run], others: Sequence[_Begun]) -> None:
        self.runs, self.since, self.others = runs, since, others
        self.last = last if last is not None and last.since == since else None
        is_seen = self.last is not None and bool(self.last.runs & runs or not (self.last.runs or others))
        self.seen = self.last if is_seen else None


def _grown(pid: int, past: _Past, family: Family, told: Held) -> Grown:
    gpu = {uuid: _gpu_before(pid, past, uuid, mb) for uuid, mb in family.gpu_memory_mb.items()}
    gpu.update((uuid, mb) for uuid, mb in told.gpu_memory_mb.items() if mb is not None)
    ram = _ram_before(pid, past, family) if told.ram_mb is None else told.ram_mb
    return Grown(family, past.runs, past.since, gpu, ram)


def _gpu_before(pid: int, past: _Past, uuid: str, now_mb: int | None) -> int | None:
    """Of a process that has not told. Where it was not looked at on that GPU, it has found what is there now."""
    if not past.runs or (past.last is None and pid == os.getpid()):
        return now_mb  # others may take what is not used
    if past.seen is not None:  # the same, perhaps with others (in a pool of threads), or the first after it was idle
        return past.seen.gpu_before_mb.get(uuid, now_mb)
    # Others were there before it, unseen at their end: it is taken to have found as much as they can have left.
    before = 0 if past.last is None else past.last.family.gpu_memory_mb.get(uuid, now_mb)
    if now_mb is None or before is None:
        return None
    return int(min(now_mb, max(before, *(one.gpu_memory_mb for one in past.others), 0)))


def _ram_before(pid: int, past: _Past, family: Family) -> int:
    """Likewise; what an idle process has had of its own it keeps."""
    if past.seen is not None:
        return past.seen.ram_before_mb
    if not past.runs or (past.last is None and pid == os.getpid()):
        return own_ram_mb(family.pids)
    before = 0 if past.last is None else past.last.family.ram_mb or 0
    left = max(before, *(one.ram_mb for one in past.others), 0)
    return int(min(own_ram_mb(family.pids), left)) if left else 0
