"""The table of tenants."""

from __future__ import annotations

from collections.abc import Callable

from celery_allocator.model import TenantState
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import Pieces
from celery_allocator.surfaces.terminal.columns import Column, plain

#: What all are called that name no tenant.
NOBODY = "(none)"


def _held(name: str) -> Callable[[TenantState, float, int], Pieces]:
    """What it holds of an amount, and, where there is one, its cap."""
    told: Callable[[int], str] = words.size if name.endswith("_mb") else str

    def cell(row: TenantState, _: float, width: int) -> Pieces:
        used, cap = getattr(row, name), getattr(row.quota, name)
        if cap is None:
            return plain(told(used) if used else "-", "plain" if used else "dim")
        return plain(f"{told(used)}/{told(cap)}", "warning" if used >= cap else "plain")

    return cell


def _share(row: TenantState, _: float, width: int) -> Pieces:
    return plain(f"{100 * row.share:.1f}%")


TENANTS: tuple[Column[TenantState], ...] = (
    Column("TENANT", 12, lambda row, _, w: plain(row.name or NOBODY), lambda row: row.name, grow=3),
    Column("WEIGHT", 6, lambda row, _, w: plain(f"{row.quota.weight:g}"), lambda row: -row.quota.weight, 1, right=True),
    Column("SHARE", 7, _share, lambda row: -row.share, grow=1, right=True),
    Column("WAITING", 7, lambda row, _, w: plain(f"{row.waiting:,}"), lambda row: -row.waiting, grow=1, right=True),
    Column("GPU", 11, _held("gpu_memory_mb"), lambda row: -row.gpu_memory_mb, grow=1, right=True),
    Column("CORES", 7, _held("cpu_cores"), lambda row: -row.cpu_cores, grow=1, right=True),
    Column("RAM", 11, _held("ram_mb"), lambda row: -row.ram_mb, grow=1, right=True),
    Column("TASKS", 7, _held("tasks"), lambda row: -row.tasks, grow=1, right=True),
)
