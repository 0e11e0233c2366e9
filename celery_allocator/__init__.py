"""celery-allocator: Celery tasks that declare GPU memory, cores and RAM, placed on workers that have them free.

Names are loaded on first use, so that ``import celery_allocator`` imports neither celery nor redis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "install": "celery_allocator.plugin",
    "current_allocation": "celery_allocator.plugin",
    "allocate_resources": "celery_allocator.resource_allocator",
    "release_resources": "celery_allocator.resource_allocator",
    "renew_resources": "celery_allocator.resource_allocator",
    "allocation": "celery_allocator.resource_allocator",
    "lease": "celery_allocator.resource_allocator",
    "Requirements": "celery_allocator.model",
    "Allocation": "celery_allocator.model",
    "Strategy": "celery_allocator.model",
    "AllocatorError": "celery_allocator.errors",
}

__all__ = [*_EXPORTS, "__version__"]  # noqa: PLE0604 (names of the lazy table)

if TYPE_CHECKING:
    from celery_allocator.errors import AllocatorError
    from celery_allocator.model import Allocation, Requirements, Strategy
    from celery_allocator.plugin import current_allocation, install
    from celery_allocator.resource_allocator import (
        allocate_resources,
        allocation,
        lease,
        release_resources,
        renew_resources,
    )


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
