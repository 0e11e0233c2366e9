"""Rows as plain values, before a database has them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime


@dataclass(slots=True)
class AllocationRecord:
    """A row of ``allocations`` without its pool; see :class:`~celery_allocator.history.models.AllocationRow`."""

    allocation_id: str
    last_event_id: str
    last_event_at: datetime
    task_id: str = ""
    task_name: str = ""
    tenant: str = ""
    kind: str | None = None
    gpu_memory_mb: int | None = None
    gpu_count: int | None = None
    cpu_cores: int | None = None
    ram_mb: int | None = None
    priority: int | None = None
    strategy: str | None = None
    submitted_at: datetime | None = None
    eta_at: datetime | None = None
    expires_at: datetime | None = None
    estimated_start_at: datetime | None = None
    estimated_start_p90_at: datetime | None = None
    queue_position: int | None = None
    rearranged_at: datetime | None = None
    reserved_at: datetime | None = None
    granted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    state: str = "waiting"
    outcome: str | None = None
    node: str | None = None
    device: str | None = None
    devices: str | None = None
    worker: str | None = None
    cores: str | None = None
    token: int | None = None
    grants: int = 0
    losses: int = 0
    wait_s: float | None = None
    run_s: float = 0.0
    held_s: float = 0.0
    peak_gpu_memory_mb: int | None = None
    peak_ram_mb: int | None = None
    more: str | None = None
    affinity: str | None = None
    grown: int | None = 0
    overuse_gpu_memory_mb: int | None = None
    overuse_ram_mb: int | None = None
    cpu_cores_used: float | None = None


#: The columns of ``allocations`` that a record holds, in its order.
COLUMNS = tuple(spec.name for spec in fields(AllocationRecord))


@dataclass(frozen=True)
class StateRecord:
    """A row of ``node_states`` (``device`` is ``None``) or ``device_states``, without its pool."""

    event_id: str
    at: datetime
    event: str
    node: str
    device: str | None
    state: str | None
    worker: str | None = None
    slots: int | None = None
    cpu_cores: int | None = None
    ram_mb: int | None = None
    devices: int | None = None
    memory_mb: int | None = None
    withheld_mb: int | None = None
    foreign_mb: int | None = None
    leftover_mb: int | None = None
    overuse_mb: int | None = None
