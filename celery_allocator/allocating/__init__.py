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
from celery_allocator.allocating.reading import pool_queue, pool_status
from celery_allocator.allocating.schema import tool_schemas
from celery_allocator.allocating.session import Owner, Session, default_session, use_default
from celery_allocator.allocating.tool import PERMISSION, execute, tool_schema

__all__ = [
    "PERMISSION",
    "Lease",
    "Owner",
    "Session",
    "allocate_resources",
    "allocation",
    "default_session",
    "execute",
    "lease",
    "pool_queue",
    "pool_status",
    "release_resources",
    "renew_resources",
    "tool_schema",
    "tool_schemas",
    "use_default",
]
