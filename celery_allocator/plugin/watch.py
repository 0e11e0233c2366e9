"""The watch: which running tasks use more than they were promised, and what idle children of the pool still hold.

It judges what the meter has seen, in the meter's thread. What follows is done in the thread that may do it: the event
loop ends a child; the keeper tells the ledger, and gives back what a task held when that is really free.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery_allocator.errors import ResourceOveruse
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, TaskUse, WorkerUse
from celery_allocator.plugin.children import Process, can_end, idle, in_loop, kill_task, recycle
from celery_allocator.plugin.found import Found, Run
from celery_allocator.plugin.growth import Family, Grown, Growth
from celery_allocator.plugin.holdings import Holding
from celery_allocator.plugin.processes import born, is_gone
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between looks while the driver may still list a process that was killed.
_SOON_S = 0.1
#: Seconds for which looks of the meter are waited for after such a process is gone: its driver may hang.
_DRIVER_S = 30.0
#: Runs of which it is remembered that they were told of; reports that wait for the ledger.
_REMEMBERED = 1000


@dataclass(frozen=True)
class Look:
    """One look of the meter, begun ``at`` (on the monotonic clock).

    ``family`` gives what a process and its descendants hold. ``listed``: ids of all processes that use the GPU;
    ``None``: there is none, or the driver does not tell.
    """

    at: float
    family: Callable[[int], Family]
    listed: Container[int] | None


@dataclass(frozen=True)
class Report:
    """Overuse of which the ledger is to hear."""

    allocation: Allocation
    found: ResourceOveruse
    action: str


@dataclass
class _Killed:
    """Processes that were killed. ``gone_at``: when they were found gone, on the monotonic clock.

    ``unlisted``: the driver has been seen without them since.
    """

    processes: tuple[Process, ...]
    gone_at: float | None = None
    unlisted: bool = False


class Watch:
    """Thread-safe. ``running``: tasks that have begun and not ended; ``wake`` is called when there is a report.

    ``found``: where children tell what they held when a task began.
    """

    def __init__(
        self,
        settings: Settings,
        running: Callable[[], Iterable[Holding]],
        wake: Callable[[], None],
        *,
        has_gpu: bool,
        found: Found | None = None,
    ) -> None:
        self._settings, self._found = settings, found
        self._running, self._wake, self._has_gpu = running, wake, has_gpu
        #: Celery's pool, once there is one.
        self.pool: Any = None
        #: Oldest first; the keeper takes them.
        self.reports: deque[Report] = deque(maxlen=_REMEMBERED)
        self._growth = Growth()
        self._idle: Mapping[int, Grown] = {}
        self._killed: dict[Run, _Killed] = {}
        #: The child that was recycled last, and how many there were.
        self._leaving: Process | None = None
        self._recycled = 0
        self._looked_at = 0.0
        #: Who was over its promise at the last look.
        self._over: frozenset[Run] = frozenset()
        self._told: dict[tuple[Run, str], None] = {}
        self._said_cannot = False

    @property
    def kills(self) -> bool:
        """Whether it looks for somebody to kill."""
        return self._settings.on_overuse == "kill"

    @property
    def _awaits(self) -> bool:
        """Whether the memory of somebody who was killed may still be in use."""
        return any(not killed.unlisted for killed in list(self._killed.values()))

    def began(self, pid: int, allocation: Allocation | None = None) -> None:
        """Process ``pid`` has begun a task: under that allocation, or one that is not the allocator's."""
        if not (self.kills or self._settings.measure_s):
            return
        if allocation is None:
            self._growth.began(pid)
            return
        run = allocation.allocation_id, allocation.token or 0
        self._growth.began(pid, run, gpu_memory_mb=allocation.gpu_memory_mb, ram_mb=allocation.ram_mb)

    def wait(self, stop: threading.Event, every_s: float) -> None:
        """Wait until the next look is due: after ``every_s`` (0: never), or sooner where somebody may be killed."""
        due = time.monotonic() + (every_s or threading.TIMEOUT_MAX)
        while not stop.is_set() and (left := due - time.monotonic()) > 0:
            step = _SOON_S if self._awaits else self._settings.watch_s if self.kills else left
            stop.wait(min(left, step))
            if self._awaits or (self.kills and any(True for _ in self._running())):
                return

    def look(self, use: WorkerUse, look: Look) -> WorkerUse:
        """Judge what was seen, and do what follows from it. Returns it with what was found out."""
        self._look_for_killed(look)
        by_pid: dict[int, list[Holding]] = defaultdict(list)
        for holding in self._running():
            if holding.pid is not None:
                by_pid[holding.pid].append(holding)
        waiting = [pid for pid in idle(self.pool) if pid not in by_pid]
        if not can_end(self.pool) and os.getpid() not in by_pid:
            waiting.append(os.getpid())
        runs = {pid: frozenset(map(_run, held)) for pid, held in by_pid.items()} | dict.fromkeys(waiting, frozenset())
        told = self._found.of(one.allocation for held in by_pid.values() for one in held) if self._found else {}
        grown = self._growth.look(runs, {pid: look.family(pid) for pid in runs}, told)
        self._idle = {pid: grown[pid] for pid in waiting if pid != os.getpid()}
        judged = {pid: self._judge(held, grown[pid]) for pid, held in by_pid.items()}
        over = {pid: [found for found in verdict.values() if found] for pid, verdict in judged.items()}
        for pid, found in over.items():
            if found:
                self._act(pid, by_pid[pid], found)
        self._over = frozenset(_run(one) for pid, found in over.items() if found for one in by_pid[pid])
        alone = {held[0].allocation.allocation_id: judged[pid] for pid, held in by_pid.items() if len(held) == 1}
        return replace(
            use,
            tasks=tuple(_with(task, alone.get(task.allocation_id, {})) for task in use.tasks),
            gpu_memory_idle_mb=self._idle_mb() if self._has_gpu else None,
            children_recycled=self._recycled if self._has_gpu and can_end(self.pool) else None,
        )

    # --- what somebody uses beyond the promise

    def _judge(self, held: Sequence[Holding], grown: Grown) -> dict[str, ResourceOveruse | None]:
        """By resource: overuse, or ``None`` for none. What was not promised, or cannot be told, is not there.

        Of several GPUs, the one of which most is used beyond the promise.
        """
        verdict: dict[str, ResourceOveruse | None] = {}
        for uuid, used in grown.gpu_added_mb.items():
            of_it = [one.allocation for one in held if uuid in (one.allocation.gpu_uuids or (uuid,))]
            promised = sum(one.gpu_memory_mb for one in of_it)
            if promised and used is not None:
                found = self._over_it("gpu_memory_mb", promised, used)
                verdict["gpu_memory_mb"] = max(found, verdict.get("gpu_memory_mb"), key=_excess_mb)
        promised = sum(one.allocation.ram_mb for one in held)
        used = grown.ram_added_mb(self._most(promised)) if promised else None
        if used is not None:
            verdict["ram_mb"] = self._over_it("ram_mb", promised, used)
        return verdict

    def _most(self, promised_mb: int) -> int:
        """Up to which it is tolerated."""
        return promised_mb + max(int(promised_mb * self._settings.overuse_tolerance), self._settings.overuse_floor_mb)

    def _over_it(self, resource: str, promised_mb: int, used_mb: int) -> ResourceOveruse | None:
        return ResourceOveruse(resource, promised_mb, used_mb) if used_mb > self._most(promised_mb) else None

    def _act(self, pid: int, held: Sequence[Holding], found: Sequence[ResourceOveruse]) -> None:
        killable = len(held) == 1 and pid != os.getpid() and can_end(self.pool)
        if self.kills and killable:
            # Over it at two looks: what was only passing by, as a copy that is made, costs nobody his work.
            if _run(held[0]) in self._over:
                in_loop(_careful, self._kill, held[0], found[0])
            return
        for one in found:
            if not all(self._is_new(_run(holding), one.resource) for holding in held):
                continue
            self._tell(held, one)
        if self.kills and not self._said_cannot:
            self._said_cannot = True
            logger.warning(
                "allocator_on_overuse is kill, but this pool has no process of its own for each task: nobody is "
                "killed. Use the pool prefork"
            )

    def _tell(self, held: Sequence[Holding], found: ResourceOveruse) -> None:
        level = logging.INFO if self._settings.on_overuse == "log" else logging.WARNING
        who = ", ".join(f"{one.allocation.task_name}[{one.allocation.task_id}]" for one in held)
        together = " together" if len(held) > 1 else ""
        logger.log(
            level, "%s use%s %s%s: %d MB, %d MB promised", who, "" if together else "s", found.resource, together,
            found.used_mb, found.promised_mb,
        )  # fmt: skip
        if level == logging.WARNING and not together:
            self.reports.append(Report(held[0].allocation, found, "warn"))
            self._wake()

    def tell(self, ledger: Ledger, between: Callable[[], None]) -> None:
        """Tell the ledger of overuse; what it does not hear stays to be told. Raises :class:`LedgerError`.

        ``between`` is called between two calls.
        """
        while self.reports:
            between()
            report = self.reports[0]
            promised, used = report.found.promised_mb, report.found.used_mb
            ledger.note_overuse(
                report.allocation, report.found.resource, promised_mb=promised, used_mb=used, action=report.action
            )
            self.reports.popleft()

    def _is_new(self, run: Run, resource: str) -> bool:
        """Whether that was not told before; from now on it was."""
        if (run, resource) in self._told:
            return False
        while len(self._told) >= _REMEMBERED:
            del self._told[next(iter(self._told))]
        self._told[run, resource] = None
        return True

    # --- who is killed for it

    def _kill(self, holding: Holding, found: ResourceOveruse) -> None:
        """In the event loop."""
        request, allocation = holding.request(), holding.allocation
        if request is None or request.stale or request.overuse is not None:
            return
        killed = kill_task(self.pool, request)
        if killed is None:
            return
        request.overuse = found
        self._killed[_run(holding)] = _Killed(killed)
        logger.error(
            "%s[%s] is killed (process %d%s): %s", allocation.task_name, allocation.task_id, killed[0][0],
            f" and {len(killed) - 1} that it started" if len(killed) > 1 else "", found,
        )  # fmt: skip
        self.reports.append(Report(allocation, found, "kill"))
        self._wake()

    def is_free(self, allocation: Allocation) -> bool:
        """Whether what was killed for it is gone, and the driver has been seen without it since."""
        run = (allocation.allocation_id, allocation.token or 0)
        killed = self._killed.get(run)
        if killed is None:
            return True
        now = time.monotonic()
        if killed.gone_at is None:
            if not all(is_gone(pid, since) for pid, since in killed.processes):
                return False
            killed.gone_at = now
        if self._has_gpu and not killed.unlisted and now - max(killed.gone_at, self._looked_at) < _DRIVER_S:
            return False
        self._killed.pop(run, None)
        return True

    def _look_for_killed(self, look: Look) -> None:
        self._looked_at = look.at
        for killed in list(self._killed.values()):
            if killed.gone_at is None:
                if all(is_gone(pid, since) for pid, since in killed.processes):
                    killed.gone_at = time.monotonic()
            elif killed.gone_at < look.at:
                killed.unlisted = look.listed is None or not any(
                    pid in look.listed and born(pid) in (None, since) for pid, since in killed.processes
                )

    # --- what idle children hold

    def _idle_mb(self) -> int | None:
        amounts = [mb for grown in self._idle.values() for mb in grown.family.gpu_memory_mb.values()]
        return None if None in amounts else sum(amount or 0 for amount in amounts)

    def recycle(self) -> None:
        """End the idle child that holds most GPU memory, for which something waits. One at a time: that may do."""
        if self._leaving is not None and not is_gone(*self._leaving):
            return
        held = [
            (sum(mb or 0 for mb in grown.family.gpu_memory_mb.values()), pid, grown.since)
            for pid, grown in self._idle.items()
        ]
        most, pid, since = max(held, default=(0, 0, None))
        if most > 0:
            in_loop(_careful, self._recycle, pid, since, most)

    def _recycle(self, pid: int, since: str | None, held_mb: int) -> None:
        """In the event loop."""
        if recycle(self.pool, pid, since):
            self._leaving = pid, since
            self._recycled += 1
            logger.info(
                "process %d is ended, and another one started: it runs nothing and holds %d MB of GPU memory, for "
                "which a task waits",
                pid,
                held_mb,
            )


def _careful(call: Callable[..., None], *args: Any) -> None:
    """What goes wrong in the event loop would end the worker."""
    try:
        call(*args)
    except Exception:
        logger.exception("watch: unexpected error; going on")


def _run(holding: Holding) -> Run:
    return holding.allocation.allocation_id, holding.allocation.token or 0


def _excess_mb(found: ResourceOveruse | None) -> int:
    return 0 if found is None else found.used_mb - found.promised_mb


def _with(task: TaskUse, verdict: Mapping[str, ResourceOveruse | None]) -> TaskUse:
    over = {name: _excess_mb(found) for name, found in verdict.items()}
    return replace(task, gpu_memory_over_mb=over.get("gpu_memory_mb"), ram_over_mb=over.get("ram_mb"))
