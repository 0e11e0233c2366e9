"""What tasks have added to what their processes hold: the part of it that is theirs to answer for.

A child of the pool runs one task after another and keeps what the framework caches; the next task is not to blame for
that. So what a process held while it was idle is not counted. Of RAM, only what is the process's own counts: after a
fork it shares pages with the worker, which its resident memory counts as well.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
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
    """A process at a look. ``runs``: what it runs (nothing: it is idle); ``begun``: how many tasks it has begun so far.

    ``gpu_before_mb`` and ``ram_before_mb``: what it held before it began what it runs, or holds now if it is idle.
    """

    family: Family
    runs: frozenset[Run]
    begun: int
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


class Growth:
    """Follows processes from look to look. :meth:`began` is thread-safe; :meth:`look` is for one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: Counter[int] = Counter()
        self._last: dict[int, Grown] = {}

    def began(self, pid: int) -> None:
        """Process ``pid`` has begun a task, of whatever kind."""
        with self._lock:
            self._begun[pid] += 1

    def look(self, runs: Mapping[int, frozenset[Run]], families: Mapping[int, Family]) -> dict[int, Grown]:
        """What each process holds now, and held before what it runs. ``runs``: by process; empty for an idle one."""
        with self._lock:
            begun = dict(self._begun)
            for pid in begun.keys() - families.keys():
                if not psutil.pid_exists(pid):
                    del self._begun[pid]
        self._last = {pid: self._grown(pid, now, families[pid], begun.get(pid, 0)) for pid, now in runs.items()}
        return self._last

    def _grown(self, pid: int, runs: frozenset[Run], family: Family, begun: int) -> Grown:
        last, since = self._last.get(pid), born(pid)
        if last is not None and last.since != since:
            last = None
        if not runs:
            # Nothing runs there, so its RAM stays as it is: measured once.
            stays = last is not None and not last.runs and last.begun == begun
            before = family.gpu_memory_mb, last.ram_before_mb if last and stays else own_ram_mb(family.pids)
        elif last is not None and (last.runs & runs or (not last.runs and last.begun == begun - len(runs))):
            # The same, perhaps with others (in a pool of threads), or the first after it was seen idle.
            before = last.gpu_before_mb, last.ram_before_mb
        elif last is None and begun == len(runs) and pid != os.getpid():
            before = 0, 0  # its first
        else:  # what others have left there was not seen: to be just, take this run to have found all there is
            before = family.gpu_memory_mb, own_ram_mb(family.pids)
        return Grown(family, runs, begun, since, *before)


def own_ram_mb(pids: Iterable[int]) -> int:
    """RAM that would be free if these processes ended, in MB: at least so much.

    The sum of what each has for itself (its USS); or of its share in what it has with others (PSS), less all that the
    worker's main process has: then what they have among themselves counts, too, as with processes that load data.
    """
    own = shared = 0
    ours = set(pids)
    for pid in ours:
        try:
            memory = psutil.Process(pid).memory_full_info()
        except psutil.Error:  # just ended
            continue
        own += memory.uss
        shared += getattr(memory, "pss", 0)
    workers = 0 if os.getpid() in ours else psutil.Process().memory_info().rss
    return max(own, shared - workers) // _MB
