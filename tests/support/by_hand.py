"""Sessions of the function form on a test's own pool, with devices that do not depend on the machine."""

from __future__ import annotations

from typing import Any

from celery_allocator.allocating import Session
from celery_allocator.settings import Settings
from tests.support.redis_server import RedisServer

NODE = "host1"
CORES = 8
RAM_MB = 16384
GPU_MB = 24576
#: What every reply has, in this order.
KEYS = ["success", "allocation_id", "task_id", "resources", "queue_position", "estimated_start_time", "metadata"]


def host(**changes: Any) -> dict[str, Any]:
    """Settings of a host with two simulated GPUs of 24576 MB, 8 cores and 16384 MB of RAM."""
    return {"node": NODE, "devices": f"sim:2x{GPU_MB}", "cpu_cores": CORES, "ram_mb": RAM_MB, **changes}


def environment(server: RedisServer, pool: str, **changes: Any) -> dict[str, str]:
    """The same as environment variables, for processes."""
    values = {**host(), "backend_url": server.url, "pool": pool, **changes}
    return {f"ALLOCATOR_{name.upper()}": str(value) for name, value in values.items()}


def session(server: RedisServer, pool: str, **changes: Any) -> Session:
    """A session on ``pool``."""
    return Session(Settings(backend_url=server.socket_url, pool=pool, **host(**changes)))
