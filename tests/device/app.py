"""A Celery application whose tasks use a real GPU: ``make_app(**config)`` for the producer, ``app`` for workers."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from celery import Celery

from celery_allocator import current_allocation, install
from tests.device.cuda import Cuda

NEED = {"gpu_memory_mb": 2048, "cpu_cores": 1}
if os.environ.get("DEVICE_APP_USES_CUDA"):
    Cuda().initialise()

#: Seconds a task waits for what it was told to wait for before it fails.
PATIENCE_S = 60


def make_app(**config: Any) -> Celery:
    """A fresh application with the tasks of this module."""
    app = Celery("device", set_as_current=False)
    app.conf.update(config)
    install(app)

    @app.task(name="device.look", shared=False, resources=NEED)
    def look() -> dict[str, Any]:
        """What the driver, and PyTorch where it is installed, show this task."""
        cuda = Cuda()
        cuda.initialise()
        allocation = current_allocation()
        assert allocation is not None
        return {
            "granted": allocation.gpu_uuid,
            "environment": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "driver": cuda.uuids(),
            "torch": _torch_uuids(),
        }

    @app.task(name="device.hold", shared=False, resources=NEED)
    def hold(mb: int, key: str) -> str:
        """Take so many MB and keep them until something is pushed to ``key``; says so at ``key:in``."""
        cuda = Cuda()
        cuda.initialise()
        cuda.open()
        cuda.allocate(mb)
        client = app.backend.client
        client.rpush(f"{key}:in", os.getpid())
        assert client.blpop([key], timeout=PATIENCE_S), f"nothing came to {key}"
        return key

    @app.task(name="device.stray", shared=False, resources=NEED)
    def stray() -> None:
        """Write where nothing is mapped: the driver reports an Xid. The child is of no use for CUDA after it."""
        cuda = Cuda()
        cuda.initialise()
        cuda.open()
        cuda.launch("stray", 16)

    @app.task(name="device.too_much", shared=False, resources=NEED)
    def too_much() -> None:
        """Ask PyTorch for more than any GPU has."""
        import torch

        torch.empty(2**44, dtype=torch.uint8, device="cuda")

    @app.task(name="device.take", shared=False, resources=NEED)
    def take(framework: str, mb: int) -> tuple[int, int]:
        """Take so many MB with a framework; returns its claim and its process."""
        _take(framework, mb)
        allocation = current_allocation()
        assert allocation is not None
        return allocation.gpu_memory_mb, os.getpid()

    @app.task(name="device.take_once", shared=False, resources=NEED, allocator_oom_retries=0)
    def take_once(framework: str, mb: int) -> None:
        """The same, without a second try."""
        _take(framework, mb)

    return app


def _take(framework: str, mb: int) -> None:
    size = mb * 2**20
    if framework == "torch":
        import torch

        torch.empty(size, dtype=torch.uint8, device="cuda")
    elif framework == "cupy":
        import cupy

        cupy.zeros(size, dtype="uint8")
    else:
        import jax

        jax.numpy.zeros(size, dtype="uint8").block_until_ready()


def _torch_uuids() -> list[str] | None:
    if find_spec("torch") is None:
        return None
    import torch

    return [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())]


app = make_app()
