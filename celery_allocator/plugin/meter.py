"""The meter: a plain thread in the worker's main process that measures what its device, node and tasks really use.

It only looks: what follows from it is the reconciler's. Not in the keeper's thread: a driver that hangs must not cost
the worker its lease. The keeper sends what was measured last along with its heartbeat.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import psutil

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import GpuUse, ram_used_mb, read_use
from celery_allocator.model import DeviceInventory, TaskUse, WorkerUse
from celery_allocator.plugin.beyond import Beyond, beyond
from celery_allocator.plugin.growth import Family
from celery_allocator.plugin.holdings import Holding
from celery_allocator.plugin.processes import gpu_memory_mb, resident_mb
from celery_allocator.plugin.sampled import Sampled
from celery_allocator.plugin.watch import Look, Watch

logger = logging.getLogger(__name__)

_MB = 2**20
#: What a GPU that nobody uses may show as used: a driver that does not tell its own share apart.
_NOBODYS_MB = 1024


class Meter:
    """Measures every ``every_s`` seconds (0: never) once started. Thread-safe.

    ``device``: what the worker serves, ``None`` for CPU-only work; a simulated one has no driver to ask. ``watch``
    judges what was measured, and may have it look more often.
    """

    def __init__(
        self,
        device: DeviceInventory | None,
        holdings: Callable[[], Iterable[Holding]],
        every_s: float,
        reserved_ram_mb: int = 0,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._uuid = device.uuid if device is not None and not device.simulated else None
        self._holdings = holdings
        self._every_s = every_s
        self._reserved_ram_mb = reserved_ram_mb
        #: Whether tasks run in this very process, as in a pool of threads.
        self.one_process = False
        #: What is used beyond all claims, as it was measured last; ``None`` before that.
        self.beyond: Beyond | None = None
        self._looked = threading.Event()
        self._latest: WorkerUse | None = None
        #: What was measured last, also after it was taken; ``None`` before the first time.
        self.last: WorkerUse | None = None
        #: Where what each task uses is noted for the children that end them.
        self.sampled: Sampled | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: By GPU.
        self._complaints: dict[str, str] = {}
        #: Whether the driver has ever listed a process of ours: then its process ids are ours, and it keeps no secrets.
        self._told = False

    def start(self) -> None:
        """Begin to measure. A second call changes nothing."""
        if self._thread is None and (self._every_s or (self._watch is not None and self._watch.kills)):
            self._thread = threading.Thread(target=self._run, name="allocator-meter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the measurement that is being made; does not wait for it: a driver may hang."""
        self._stop.set()

    def wait_for_first(self, timeout_s: float) -> None:
        """Until it has looked once, or that time is over: a driver may hang. At once if it was not started."""
        if self._thread is not None:
            self._looked.wait(timeout_s)

    def take(self) -> WorkerUse | None:
        """What was measured last, once: ``None`` until there is something newer."""
        with self._lock:
            latest, self._latest = self._latest, None
        return latest

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                use = self.measure()
            except Exception:
                logger.exception("meter: unexpected error; going on")
            else:
                if self.sampled is not None:
                    self.sampled.note(use.tasks)
                with self._lock:
                    self._latest = self.last = use
            self._looked.set()
            if self._watch is None:
                self._stop.wait(self._every_s)
            else:
                self._watch.wait(self._stop, self._every_s)

    def measure(self) -> WorkerUse:
        """One look. What cannot be had is ``None`` in it, and told of once in the log."""
        at = time.monotonic()
        holdings = list(self._holdings())
        uuids = self._uuids(holdings)
        gpus, table = self._gpus(uuids), _Table()
        if any(one.processes and not table.knows(one, told=self._told) for one in gpus.values()):
            gpus, table = self._gpus(uuids), _Table()  # one that has ended in between is listed no more
        ours = table.family(os.getpid())
        by_gpu = {
            uuid: gpus[uuid].processes if uuid in gpus and table.knows(gpus[uuid], told=self._told) else None
            for uuid in uuids
        }
        gpu, seen = gpus.get(self._uuid or ""), by_gpu.get(self._uuid or "")
        self._told = self._told or any(process.pid in (seen or ()) for process in ours)
        use = WorkerUse(
            at=0.0,
            gpu_memory_used_mb=None if gpu is None else gpu.used_mb,
            gpu_memory_ours_mb=gpu_memory_mb(seen, _pids(ours)),
            gpu_utilization=None if gpu is None else gpu.utilization,
            gpu_temperature_c=None if gpu is None else gpu.temperature_c,
            gpu_power_w=None if gpu is None else gpu.power_w,
            ram_used_mb=ram_used_mb(),
            ram_ours_mb=resident_mb(ours),
            tasks=tuple(self._tasks(holdings, table, seen)),
        )
        self.beyond = beyond(
            use,
            [holding.allocation for holding in holdings],
            one_process=self.one_process,
            reserved_ram_mb=self._reserved_ram_mb,
            shared_ram_mb=resident_mb(ours[:1]) or 0,
            processes=len(ours),
        )
        if self._watch is None:
            return use
        # Also those that have ended and are still listed, if their ids are ours at all.
        listed = _listed(gpus.values()) if self._told else None
        idle = {uuid: by_gpu[uuid] for uuid in by_gpu if uuid == self._uuid}
        runs = {holding.pid for holding in holdings}
        try:
            return self._watch.look(
                use, Look(at, lambda pid: _family(table, by_gpu if pid in runs else idle, pid), listed)
            )
        except Exception:
            logger.exception("watch: unexpected error; going on")
            return use

    def _tasks(
        self, holdings: list[Holding], table: _Table, seen: Mapping[int, int | None] | None
    ) -> Iterable[TaskUse]:
        for holding in holdings:
            # A pool of threads has one process for all its tasks: what each of them uses cannot be told.
            if holding.pid is not None and holding.pid != os.getpid():
                family = table.family(holding.pid)
                yield TaskUse(
                    holding.allocation.allocation_id,
                    gpu_memory_mb(seen, (one.pid for one in family)),
                    resident_mb(family),
                )

    def _uuids(self, holdings: Iterable[Holding]) -> list[str]:
        """The GPU that is served, and those that tasks which run here have beside it."""
        if self._uuid is None:
            return []
        begun = [holding.allocation for holding in holdings if holding.pid is not None]
        return list(dict.fromkeys([self._uuid, *(uuid for allocation in begun for uuid in allocation.gpu_uuids)]))

    def _gpus(self, uuids: Iterable[str]) -> dict[str, GpuUse]:
        """What is in use of each; what cannot be had is not there."""
        found = {}
        for uuid in uuids:
            try:
                found[uuid] = read_use(uuid)
            except InventoryError as error:
                if self._complaints.get(uuid) != str(error):
                    logger.error("meter: %s", error)  # noqa: TRY400  # the text says it all
                self._complaints[uuid] = str(error)
            else:
                self._complaints.pop(uuid, None)
        return found


class _Table:
    """All processes of this host and who started whom, read once for one look."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._children: dict[int, list[int]] = defaultdict(list)
        for process in psutil.process_iter(["ppid"]):
            self._processes[process.pid] = process
            self._children[process.info["ppid"]].append(process.pid)

    def family(self, pid: int) -> list[psutil.Process]:
        """A process and all that descend from it; empty when it is gone."""
        found, pids = [], [pid]
        while pids:
            one = pids.pop()
            if one in self._processes:
                found.append(self._processes[one])
                pids += self._children.get(one, ())
        return found

    def knows(self, gpu: GpuUse, *, told: bool) -> bool:
        """Whether the driver's process ids mean something here: in a container they may be those of the host.

        Where much is used and nobody uses it, the driver keeps them to itself; or those who use it are outside of this
        container, and a driver that translates ids (seen with 580) leaves them out. ``told``: that it lists ours has
        been seen, so it is the latter, and one that is not known here has just ended.
        """
        if not gpu.processes:
            return gpu.processes is not None and (told or (gpu.used_mb or 0) <= _NOBODYS_MB)
        return told or gpu.processes.keys() <= self._processes.keys()


def _family(table: _Table, by_gpu: Mapping[str, Mapping[int, int | None] | None], pid: int) -> Family:
    family = table.family(pid)
    pids = _pids(family)
    return Family(pids, {uuid: gpu_memory_mb(seen, pids) for uuid, seen in by_gpu.items()}, resident_mb(family))


def _pids(processes: Iterable[psutil.Process]) -> tuple[int, ...]:
    return tuple(process.pid for process in processes)


def _listed(gpus: Iterable[GpuUse]) -> frozenset[int] | None:
    """All that the driver lists; ``None`` where it lists nothing of any GPU."""
    lists = [gpu.processes for gpu in gpus if gpu.processes is not None]
    return frozenset(pid for processes in lists for pid in processes) if lists else None
