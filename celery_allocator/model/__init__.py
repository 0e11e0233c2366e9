"""Values: requirements, allocations, cluster state. Standard library only; all frozen, with units in their names."""

from __future__ import annotations

from celery_allocator.model.allocation import Allocation, Kind, State, Strategy, iso_between, iso_utc, known_strategy
from celery_allocator.model.cluster import (
    CPU_DEVICE,
    ClusterState,
    DeviceInventory,
    DeviceState,
    Link,
    NodeInventory,
    NodeState,
    WorkerState,
)
from celery_allocator.model.label import MAX_LABEL, label
from celery_allocator.model.peaks import Peaks
from celery_allocator.model.requirements import (
    FIELDS,
    LABELS,
    NAMES,
    OTHERS,
    SELDOM,
    SIZE,
    TENANT,
    Field,
    Requirements,
)
from celery_allocator.model.shape import KIND_CODES, Shape, besides, more_of
from celery_allocator.model.task_types import TASK_TYPES
from celery_allocator.model.tenant import CAPS, Quota, TenantState
from celery_allocator.model.use import NOTHING, RamUse, TaskUse, Withheld, WorkerUse

__all__ = [
    "CAPS",
    "CPU_DEVICE",
    "FIELDS",
    "KIND_CODES",
    "LABELS",
    "MAX_LABEL",
    "NAMES",
    "NOTHING",
    "OTHERS",
    "SELDOM",
    "SIZE",
    "TASK_TYPES",
    "TENANT",
    "Allocation",
    "ClusterState",
    "DeviceInventory",
    "DeviceState",
    "Field",
    "Kind",
    "Link",
    "NodeInventory",
    "NodeState",
    "Peaks",
    "Quota",
    "RamUse",
    "Requirements",
    "Shape",
    "State",
    "Strategy",
    "TaskUse",
    "TenantState",
    "Withheld",
    "WorkerState",
    "WorkerUse",
    "besides",
    "iso_between",
    "iso_utc",
    "known_strategy",
    "label",
    "more_of",
]
