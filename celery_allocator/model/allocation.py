"""The one record of a task's claim, from submit to release."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from celery_allocator.model.requirements import Requirements


class State(str, Enum):
    """States of an allocation, in their order."""

    DELAYED = "delayed"  #: its ETA lies ahead
    ON_HOLD = "on_hold"  #: keeps its place in line, and is not granted before it is let go on
    WAITING = "waiting"  #: wants room
    GRANTED = "granted"  #: holds a device, cores and RAM; not started yet
    RUNNING = "running"  #: started by its worker, or held by hand
    RELEASED = "released"  #: ended; holds nothing


class Kind(str, Enum):
    """Who runs what the allocation is for."""

    TASK = "task"  #: a Celery worker; needs one of its slots
    MANUAL = "manual"  #: whoever asked for it; lives until its TTL


#: How a strategy's name is written.
STRATEGY_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Strategy(str, Enum):
    """Rules that pick the device.

    Those that a user registers (setting ``allocator_strategies``) are values of this type as well, and no members:
    ``Strategy("mine")``. Whether a name is registered is :func:`known_strategy`'s to say.
    """

    FIRST_FIT = "first_fit"  #: the first device, in the order of registration, that fits
    BEST_FIT = "best_fit"  #: the device with the least GPU memory left, then on the fullest node
    PRIORITY = "priority"  #: best_fit's device, in strict order of priority, then arrival
    SPREAD = "spread"  #: the device with the most GPU memory left, then on the emptiest node
    FGD = "fgd"  #: the device where it adds least to what lately asked-for shapes cannot use

    @classmethod
    def _missing_(cls, value: object) -> Strategy | None:
        if not isinstance(value, str) or not STRATEGY_NAME.fullmatch(value):
            return None
        made = str.__new__(cls, value)
        made._name_ = made._value_ = str(value)
        return made


def known_strategy(value: Any, registered: Iterable[str] = ()) -> Strategy:
    """A strategy by its name, of the package's or those ``registered``. ``ValueError`` tells which there are."""
    names = [*(strategy.value for strategy in Strategy), *registered]
    if not isinstance(value, str) or str(getattr(value, "value", value)) not in names:
        raise ValueError(f"must be one of {', '.join(names)}")
    return Strategy(value)


@dataclass(frozen=True)
class Allocation:
    """A task's claim as the ledger holds it. Times: seconds since the epoch on the ledger's clock, ``None`` if not yet.

    ``cpu_cores`` are the granted core ids; ``token`` grows with every grant and is what start and release are checked
    against. It starts before ``estimated_start_at`` in one of two cases, before ``estimated_start_p90_at`` in nine of
    ten. ``queue_position`` is 1 for the next in line and 0 for what does not wait. ``on_hold_by``: who put
    it on hold.
    """

    allocation_id: str
    task_id: str
    task_name: str
    state: State
    kind: Kind
    requirements: Requirements
    strategy: Strategy
    submitted_at: float
    granted_at: float | None = None
    started_at: float | None = None
    expires_at: float | None = None
    eta_at: float | None = None
    token: int = 0
    node: str | None = None
    device_id: str | None = None
    device_uuid: str | None = None
    #: Id and UUID of each GPU besides the first (``gpu_count`` above 1).
    more_devices: tuple[tuple[str, str], ...] = ()
    #: MB granted of each GPU, where a share of it was asked for.
    gpu_memory_granted_mb: int | None = None
    queue: str | None = None
    worker: str | None = None
    cpu_cores: tuple[int, ...] = ()
    queue_position: int = 0
    estimated_start_at: float | None = None
    estimated_start_p90_at: float | None = None
    losses: int = 0
    #: How often it was granted again with a larger claim, as it had run out of GPU memory.
    oom_retries: int = 0
    on_hold_by: str | None = None

    @property
    def gpu_id(self) -> str | None:
        """``device_id`` of a GPU, ``None`` for CPU-only work."""
        return self.device_id if self.requirements.on_gpu else None

    @property
    def gpu_uuid(self) -> str | None:
        """UUID of the GPU, ``None`` for CPU-only work."""
        return self.device_uuid if self.requirements.on_gpu else None

    @property
    def device_ids(self) -> tuple[str, ...]:
        """Every device held, ``device_id`` first; empty while none is."""
        return (self.device_id, *(device for device, _ in self.more_devices)) if self.device_id else ()

    @property
    def place(self) -> str:
        """Where it is, for people: ``n1/gpu_0``, of several GPUs ``n1/gpu_0, gpu_1``; empty while it holds nothing."""
        return f"{self.node}/{', '.join(self.device_ids)}" if self.node else ""

    @property
    def gpu_ids(self) -> tuple[str, ...]:
        """Every GPU held, ``gpu_id`` first."""
        return self.device_ids if self.requirements.on_gpu else ()

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """UUID of every GPU held, ``gpu_uuid`` first."""
        return (self.gpu_uuid, *(uuid for _, uuid in self.more_devices)) if self.gpu_uuid else ()

    @property
    def gpu_memory_mb(self) -> int:
        """GPU memory claimed of each GPU, in MB: of a share what it came to, as soon as it is granted."""
        granted = self.gpu_memory_granted_mb
        return self.requirements.gpu_memory_mb if granted is None else granted

    @property
    def ram_mb(self) -> int:
        """RAM claimed, in MB."""
        return self.requirements.ram_mb

    @property
    def priority(self) -> int:
        """Priority claimed with."""
        return self.requirements.priority

    def asked(self) -> dict[str, Any]:
        """Who asks for what, as plain JSON-ready data."""
        return {
            "allocation_id": self.allocation_id,
            "task_id": self.task_id,
            "name": self.task_name,
            "requirements": self.requirements.as_dict(),
            "strategy": self.strategy.value,
        }

    def to_wire(self) -> dict[str, Any]:
        """As plain data for a message header; :meth:`from_wire` reads it back."""
        return {
            "id": self.allocation_id,
            "task_id": self.task_id,
            "name": self.task_name,
            "state": self.state.value,
            "kind": self.kind.value,
            "req": self.requirements.as_dict(),
            "strategy": self.strategy.value,
            "submitted_at": self.submitted_at,
            "granted_at": self.granted_at,
            "started_at": self.started_at,
            "token": self.token,
            "node": self.node,
            "device": self.device_id,
            "uuid": self.device_uuid,
            "queue": self.queue,
            "worker": self.worker,
            "cores": list(self.cpu_cores),
            "losses": self.losses,
            "more": [list(device) for device in self.more_devices],
            "granted_mb": self.gpu_memory_granted_mb,
            "oom_retries": self.oom_retries,
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Allocation:
        """The inverse of :meth:`to_wire`."""
        return cls(
            allocation_id=data["id"],
            task_id=data["task_id"],
            task_name=data["name"],
            state=State(data["state"]),
            kind=Kind(data["kind"]),
            requirements=Requirements(**data["req"]),
            strategy=Strategy(data["strategy"]),
            submitted_at=data["submitted_at"],
            granted_at=data["granted_at"],
            started_at=data["started_at"],
            token=data["token"],
            node=data["node"],
            device_id=data["device"],
            device_uuid=data["uuid"],
            queue=data["queue"],
            worker=data["worker"],
            cpu_cores=tuple(data["cores"]),
            losses=data["losses"],
            more_devices=tuple((str(name), str(uuid)) for name, uuid in data.get("more", ())),
            gpu_memory_granted_mb=data.get("granted_mb"),
            oom_retries=data.get("oom_retries", 0),
        )


def iso_between(half: float | None, most: float | None) -> str | None:
    """An estimated start as its p50 and p90, ``2026-01-01T12:00:00Z … 12:05:00Z``; ``None``: it is not known."""
    first, last = iso_utc(half), iso_utc(most)
    if first is None or last is None or last == first:
        return first
    day, _, clock = last.partition("T")
    return f"{first} … {clock if first.startswith(day) else last}"


def iso_utc(seconds: float | None) -> str | None:
    """Seconds since the epoch as ``2026-01-01T12:00:00Z`` (whole seconds); ``None`` stays ``None``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
