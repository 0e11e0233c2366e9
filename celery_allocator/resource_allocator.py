"""The allocator as functions, as a command and as an agent's tool.

As a command, with JSON on standard output::

    python -m celery_allocator.resource_allocator "task_123" --task-type="ml_inference" --gpu-memory=2048 --cpu-cores=2

Exit codes: 0 granted or in line, 1 refused (``success: false``), 2 the call itself was wrong.
"""

from __future__ import annotations

import sys

from celery_allocator.allocating import (
    PERMISSION,
    Lease,
    Session,
    allocate_resources,
    allocation,
    execute,
    lease,
    pool_queue,
    pool_status,
    release_resources,
    renew_resources,
    tool_schema,
    tool_schemas,
)

__all__ = [
    "PERMISSION",
    "Lease",
    "Session",
    "allocate_resources",
    "allocation",
    "execute",
    "lease",
    "pool_queue",
    "pool_status",
    "release_resources",
    "renew_resources",
    "tool_schema",
    "tool_schemas",
]

if __name__ == "__main__":
    from celery_allocator.allocating.command import main

    sys.exit(main())
