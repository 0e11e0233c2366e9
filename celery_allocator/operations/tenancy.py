"""Operator actions on tenants: what their turns are worth, and what they may hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.ledger import Ledger, Operated
from celery_allocator.model import CAPS, Quota
from celery_allocator.operations.commands import Command, Step
from celery_allocator.operations.effect import Effect


def _called(name: str) -> str:
    return f"tenant {name}" if name else "what names no tenant"


@dataclass(frozen=True)
class _Tenant(Command):
    name: str

    def undo(self, at: Step) -> Effect:
        done = at.ledger.restore_tenant(self.name, str(at.before["quota"]), publishes=at.publishes, note=at.note)
        return Effect(done.entry, f"{_called(self.name)} has its former quota again", done.grants)


@dataclass(frozen=True)
class SetTenant(_Tenant):
    """Give a tenant a weight, and caps on what it may hold (``None``: none). It replaces what it had.

    Raises :class:`RequirementsError` for what can be no quota. What it holds already stays.
    """

    weight: float = 1.0
    gpu_memory_mb: int | None = None
    cpu_cores: int | None = None
    ram_mb: int | None = None
    tasks: int | None = None

    action = "set-tenant"

    def __post_init__(self) -> None:
        assert self.quota

    @classmethod
    def changed(cls, ledger: Ledger, name: str, **changes: Any) -> SetTenant:
        """The quota that a tenant has now, with these fields changed."""
        quota = next((state.quota for state in ledger.tenants() if state.name == name), Quota())
        return cls(name, **{**asdict(quota), **changes})

    @property
    def quota(self) -> Quota:
        """Its weight and caps."""
        return Quota(self.weight, **{cap: getattr(self, cap) for cap in CAPS})

    def as_args(self) -> dict[str, Any]:
        """The values it was made from, without the caps that there are not."""
        return {"name": self.name, **self.quota.as_dict()}

    def do(self, at: Step) -> Effect:
        done = at.ledger.set_tenant(self.name, self.quota, publishes=at.publishes, note=at.note)
        return _told(done, f"{_called(self.name)} has {_words(self.quota)}")


@dataclass(frozen=True)
class ResetTenant(_Tenant):
    """Take weight and caps from a tenant: it has weight 1 and no cap."""

    action = "reset-tenant"

    def do(self, at: Step) -> Effect:
        done = at.ledger.set_tenant(self.name, None, publishes=at.publishes, note=at.note)
        return _told(done, f"{_called(self.name)} has no quota")


def _told(done: Operated, text: str) -> Effect:
    return Effect(done.entry, text, done.grants)


def _words(quota: Quota) -> str:
    told = quota.as_dict()
    weight = told.pop("weight")
    caps = ", ".join(f"{name}={value}" for name, value in told.items())
    return f"weight {weight:g} and " + (f"holds at most {caps}" if caps else "no cap")
