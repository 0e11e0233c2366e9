"""The function form of the allocator: allocations made by hand, outside Celery.

``celery_allocator.resource_allocator`` is the public module; this package is what stands behind it.
"""

from __future__ import annotations

from celery_allocator.allocating.function import (
    allocate_resources,
    allocation,
    release_resources,
    renew_resources,
)
from celery_allocator.allocating.holding import Lease, lease
from celery_allocator.allocating.session import Session, default_session, use_default
from celery_allocator.allocating.tool import PERMISSION, execute, tool_schema

__all__ = [
    "PERMISSION",
    "Lease",
    "Session",
    "allocate_resources",
    "allocation",
    "default_session",
    "execute",
    "lease",
    "release_resources",
    "renew_resources",
    "tool_schema",
    "use_default",
]
