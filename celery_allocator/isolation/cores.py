"""Pin this process, every thread of it, to the cores that its task was granted.

Only for processes that run one task at a time (prefork and solo pools): threads of other tasks would be pinned too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_THREADS = Path("/proc/self/task")

#: Passes over the threads at most: a thread born during a pass has its parent's mask, old or new.
_PASSES = 10


@dataclass(frozen=True)
class Previous:
    """Masks to go back to: of the process (for threads born since), and of each thread."""

    process: frozenset[int]
    threads: Mapping[int, frozenset[int]]


def _current_mask() -> frozenset[int]:
    """Core ids the process's main thread may run on; empty where the system has no affinity masks (macOS)."""
    return frozenset(os.sched_getaffinity(os.getpid())) if hasattr(os, "sched_getaffinity") else frozenset()


#: The mask this process started with. A fork takes it along, so that a child that starts pinned still knows it.
_INITIAL = _current_mask()


def pin(core_ids: Iterable[int]) -> Previous | None:
    """Pin the process to those of ``core_ids`` that it was started with; give the result to :func:`unpin`.

    ``None``, and nothing is done, if none of them exists here (simulated cores) or the system cannot pin.
    """
    cores = frozenset(core_ids) & _INITIAL
    if not cores:
        return None
    masks: dict[int, frozenset[int]] = {}
    previous = Previous(_current_mask(), masks)
    for thread in _until_no_new_threads():
        try:
            masks[thread] = frozenset(os.sched_getaffinity(thread))
            os.sched_setaffinity(thread, cores)
        except ProcessLookupError:  # ended meanwhile
            masks.pop(thread, None)
        except OSError:  # a control group took the cores away since the start, or forbids pinning
            unpin(previous)
            return None
    return previous


def unpin(previous: Previous | None) -> None:
    """Give every thread back the mask it had before :func:`pin`; threads born since get the process's."""
    if previous is None:
        return
    for thread in _until_no_new_threads():
        try:
            os.sched_setaffinity(thread, previous.threads.get(thread, previous.process))
        except OSError:  # ended meanwhile, or its cores were taken away: the kernel has chosen others
            continue


@contextmanager
def pinned(core_ids: Iterable[int]) -> Iterator[Previous | None]:
    """:func:`pin` for the body, :func:`unpin` after it; yields what pin returned (``None``: not pinned)."""
    previous = pin(core_ids)
    try:
        yield previous
    finally:
        unpin(previous)


def _until_no_new_threads() -> Iterator[int]:
    """Ids of the process's threads, each once, those that are born meanwhile included."""
    seen: set[int] = set()
    for _ in range(_PASSES):
        new = {int(entry.name) for entry in _THREADS.iterdir()} - seen
        if not new:
            return
        yield from sorted(new)
        seen |= new
