"""What a tenant's turns are worth, what it may hold, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from celery_allocator.errors import LabelError, RequirementsError, SettingsError
from celery_allocator.model.label import label

#: Caps of a quota, and what each counts.
CAPS: dict[str, str] = {
    "gpu_memory_mb": "GPU memory in MB over all devices",
    "cpu_cores": "CPU cores over all nodes",
    "ram_mb": "RAM in MB over all nodes",
    "tasks": "allocations, running or granted",
}
_MOST = 10**12


@dataclass(frozen=True)
class Quota:
    """A tenant's weight among others, and hard caps on what it may hold at a time; ``None``: no cap.

    A tenant of weight 2 gets twice the share of one of weight 1. Raises
    :class:`~celery_allocator.errors.RequirementsError` at construction, naming key, value and rule.
    """

    weight: float = 1.0
    gpu_memory_mb: int | None = None
    cpu_cores: int | None = None
    ram_mb: int | None = None
    tasks: int | None = None

    def __post_init__(self) -> None:
        weight = self.weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0.001 <= weight <= 1_000_000:
            raise RequirementsError("weight", weight, "must be a number from 0.001 to 1000000")
        object.__setattr__(self, "weight", float(weight))  # 2 and 2.0 are one quota, and written as one
        for name in CAPS:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
                raise RequirementsError(name, value, f"must be a whole number from 0 to {_MOST}")

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Quota:
        """From plain data such as ``{"weight": 2, "gpu_memory_mb": 81920}``. Raises ``RequirementsError``."""
        if not isinstance(given, Mapping):
            raise RequirementsError("quota", given, "must be a mapping such as {'weight': 2, 'gpu_memory_mb': 81920}")
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                raise RequirementsError(str(key), given[key], f"unknown; known are {', '.join(known)}")
        return cls(**{key: value for key, value in given.items() if value is not None})

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without the caps that there are not."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def quotas(tenants: Mapping[str, Any]) -> dict[str, Quota]:
    """What the setting ``allocator_tenants`` says. Raises :class:`SettingsError` naming tenant, value and rule."""
    found: dict[str, Quota] = {}
    for name, given in tenants.items():
        try:
            quota = Quota.parse(given)
            found[check_tenant(name, quota)] = quota
        except (RequirementsError, LabelError) as error:
            raise SettingsError(f"allocator_tenants (ALLOCATOR_TENANTS) of tenant {name!r}: {error}") from error
    return found


def check_tenant(name: str, quota: Quota) -> str:
    """``name`` if a tenant of that name can have that quota. Raises ``LabelError``, ``RequirementsError``."""
    label("tenant", name, without="/,", empty=True)
    if not name and quota != Quota(quota.weight):
        raise RequirementsError("tenant", name, "caps need a tenant's name; those that name none have a weight only")
    return name


@dataclass(frozen=True)
class TenantState:
    """One tenant at one instant; ``name`` empty: all that name none.

    ``share``: its dominant share (0 to 1), that is the largest of its shares of all GPU memory, cores and RAM, divided
    by its weight; whose is smallest has the next turn. ``by``: who set its quota, ``settings`` or ``operator``; empty:
    nobody.
    """

    name: str
    quota: Quota
    by: str
    gpu_memory_mb: int
    cpu_cores: int
    ram_mb: int
    tasks: int
    share: float
    waiting: int

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {**asdict(self), "quota": self.quota.as_dict()}
