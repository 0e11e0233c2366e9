"""What is really used, as workers measure it. ``None`` everywhere: not measured, or not supported; never 0 for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TaskUse:
    """What the processes of one running task use, in MB.

    ``ram_mb`` is resident memory. It counts pages that the worker's processes share once for each of them, so the sum
    over tasks may be more than the node's.

    ``gpu_memory_over_mb`` and ``ram_over_mb``: by how much it exceeds its promise, as its worker judges that (see
    ``plugin/watch.py``): 0 within the tolerance, ``None`` where it was not judged.
    """

    allocation_id: str
    gpu_memory_mb: int | None = None
    ram_mb: int | None = None
    gpu_memory_over_mb: int | None = None
    ram_over_mb: int | None = None


@dataclass(frozen=True)
class Withheld:
    """Memory that no claim holds and that is in use all the same, in MB, by who uses it: it is not given to anybody.

    ``foreign_mb``: processes that are not ours; ``leftover_mb``: processes of a worker that run no task (caches,
    contexts; GPU memory only); ``overuse_mb``: tasks, beyond what they claimed. ``pids_hidden``: the driver's process
    ids mean nothing here, so ``foreign_mb`` is all that is used beyond the claims.
    """

    foreign_mb: int = 0
    leftover_mb: int = 0
    overuse_mb: int = 0
    pids_hidden: bool = False

    @property
    def total_mb(self) -> int:
        """All of it together."""
        return self.foreign_mb + self.leftover_mb + self.overuse_mb


#: Nothing is withheld.
NOTHING = Withheld()


@dataclass(frozen=True)
class RamUse:
    """RAM of a node as one worker sees it, in MB: ``used_mb`` of the whole node beyond what is reserved, ``ours_mb`` by
    this worker's processes, ``overuse_mb`` by its tasks beyond what they claimed.
    """

    used_mb: int
    ours_mb: int
    overuse_mb: int = 0


@dataclass(frozen=True)
class WorkerUse:
    """What one worker has measured of its device, its node and its tasks; sent along with its heartbeat.

    ``at``: when the ledger heard it, in seconds since the epoch on the ledger's clock. ``gpu_memory_used_mb``: of the
    whole device, as the driver says; ``gpu_memory_ours_mb``: of that, by this worker and its children (``None`` also
    where the driver's process ids mean nothing here: in some containers). ``gpu_utilization``: 0 to 1. ``ram_used_mb``:
    of the whole node, within this worker's control group; ``ram_ours_mb``: resident memory of this worker's processes.
    ``gpu_memory_idle_mb``: GPU memory that children of the pool which run nothing still hold, part of that which is
    ours; ``children_recycled``: how many of them were replaced for it since the worker began.
    """

    at: float
    gpu_memory_used_mb: int | None = None
    gpu_memory_ours_mb: int | None = None
    gpu_utilization: float | None = None
    gpu_temperature_c: int | None = None
    gpu_power_w: float | None = None
    ram_used_mb: int | None = None
    ram_ours_mb: int | None = None
    tasks: tuple[TaskUse, ...] = ()
    gpu_memory_idle_mb: int | None = None
    children_recycled: int | None = None

    @property
    def gpu_memory_foreign_mb(self) -> int | None:
        """GPU memory that processes of others hold, in MB; ``None`` where that cannot be told."""
        if self.gpu_memory_used_mb is None or self.gpu_memory_ours_mb is None:
            return None
        return max(0, self.gpu_memory_used_mb - self.gpu_memory_ours_mb)

    def of(self, allocation_id: str) -> TaskUse | None:
        """What the task of that allocation uses."""
        return next((task for task in self.tasks if task.allocation_id == allocation_id), None)

    def to_wire(self) -> dict[str, Any]:
        """As plain data, without ``at`` and what is not known; :meth:`from_wire` reads it back."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        del told["at"], told["tasks"]
        tasks = [[task.allocation_id, task.gpu_memory_mb, task.ram_mb] for task in self.tasks]
        judged = [
            [task.allocation_id, task.gpu_memory_over_mb, task.ram_over_mb]
            for task in self.tasks
            if (task.gpu_memory_over_mb, task.ram_over_mb) != (None, None)
        ]
        return {**told, **({"tasks": tasks} if tasks else {}), **({"over": judged} if judged else {})}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any], at: float) -> WorkerUse:
        """The inverse of :meth:`to_wire`. Raises ``ValueError``, ``TypeError``, … for what it is not."""
        known = {spec.name for spec in fields(cls)} - {"at", "tasks"}
        amounts = {name: _amount(value) for name, value in data.items() if name in known}
        over = {str(i): (_whole(gpu), _whole(ram)) for i, gpu, ram in data.get("over", ())}
        nothing = (None, None)
        tasks = tuple(
            TaskUse(str(i), _whole(gpu), _whole(ram), *over.get(str(i), nothing))
            for i, gpu, ram in data.get("tasks", ())
        )
        return cls(at, tasks=tasks, **amounts)


def _amount(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is no amount")
    return value


def _whole(value: Any) -> int | None:
    return None if value is None else int(_amount(value))
