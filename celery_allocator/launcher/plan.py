"""What to start on a node: the command line and environment of each worker."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from celery_allocator.model import NodeInventory
from celery_allocator.settings import Settings, env_name

#: What ``--gpu`` takes for a worker that serves CPU-only work.
NO_GPU = "none"


@dataclass(frozen=True)
class WorkerCommand:
    """One worker to keep running. ``environ`` is laid over the launcher's own environment."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)


def plan(
    app: str,
    inventory: NodeInventory,
    settings: Settings,
    *,
    extra: Sequence[str] = (),
    cpu_worker: bool = True,
) -> tuple[WorkerCommand, ...]:
    """One worker per device of ``inventory``, and one for CPU-only work unless ``cpu_worker`` is false.

    ``app`` is what ``celery -A`` takes. ``extra`` are options handed to every worker; they come last on its command
    line, so that they win over what is chosen here.
    """
    # The workers must see the devices, and the node's name, that this launcher saw: a setting given on its own
    # command line reaches them only this way.
    environ = {
        env_name("devices"): settings.devices,
        env_name("node"): inventory.node,
        "PYTHONUNBUFFERED": "1",
    }
    served = {
        device.device_id.replace("_", ""): (device.uuid, settings.worker_concurrency) for device in inventory.devices
    }
    if cpu_worker:
        served["cpu"] = (NO_GPU, settings.worker_cpu_concurrency or max(1, len(inventory.cpu_cores)))
    return tuple(
        WorkerCommand(
            name,
            (
                *(sys.executable, "-m", "celery", "-A", app, "worker"),
                *("--gpu", gpu),
                *("-n", f"{name}@{inventory.node}"),
                *("-c", str(concurrency)),
                *("--pool", settings.worker_pool),
                *extra,
            ),
            environ,
        )
        for name, (gpu, concurrency) in served.items()
    )
