"""A Celery application whose tasks use the frameworks of ``fake_cuda``: ``make_app(**config)``, ``app`` for workers.

With ``GPU_APP_USES_CUDA`` in the environment its import initialises CUDA, as careless ones do.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from importlib import import_module
from typing import Any

from celery import Celery

from celery_allocator import current_allocation, install
from tests.support.fake_cuda import LIBRARY
from tests.support.fake_nvml import become

#: What the environment says of threads and caps.
_TOLD = ("THREADS", "ALLOC_CONF", "MEMORY_LIMIT", "MEM_FRACTION", "VISIBLE_DEVICES")

if os.environ.get("GPU_APP_USES_CUDA"):
    ctypes.CDLL(LIBRARY).cuInit(0)


def make_app(**config: Any) -> Celery:
    """A fresh application with the tasks of this module."""
    app = Celery("gpu", set_as_current=False)
    app.conf.update(json.loads(os.environ.get("ZOO_CONFIG", "{}")))
    app.conf.update(config)
    install(app)

    @app.task(name="gpu.take", shared=False, resources={"gpu_memory_mb": 1024, "cpu_cores": 1})
    def take(framework: str, mb: int) -> dict[str, Any]:
        """Allocate with a framework; tells what that may have at most, and what else of the process was arranged."""
        return {"most": _take(framework, mb), **_look()}

    @app.task(name="gpu.hold", shared=False, resources={"gpu_memory_mb": 1024, "cpu_cores": 1})
    def hold(key: str, script: str) -> None:
        """Run until something is pushed to ``key``; tells that it runs at ``key:in``.

        ``script``: what the driver tells from now on, as if this task had done that; empty: nothing new.
        """
        if script:
            become(os.environ, script)
        app.backend.client.rpush(f"{key}:in", os.getpid())
        assert app.backend.client.blpop([key], timeout=60), f"nothing came to {key}"

    @app.task(name="gpu.once", shared=False, allocator_oom_retries=0, resources={"gpu_memory_mb": 1024})
    def once(framework: str, mb: int) -> int:
        """The same, and it is not granted again."""
        return _take(framework, mb)

    @app.task(name="gpu.retry", shared=False, bind=True, resources={"gpu_memory_mb": 1024}, max_retries=1)
    def retry(self: Any, mb: int) -> int:
        """Has a retry of its own for what PyTorch raises."""
        try:
            return _take("torch", mb)
        except RuntimeError as error:
            raise self.retry(exc=error, countdown=0) from error

    return app


def _take(framework: str, mb: int) -> int:
    if framework == "torch":
        return int(import_module("torch").cuda.take(mb))
    if framework == "cupy":
        return int(import_module("cupy").get_default_memory_pool().take(mb))
    return int(import_module("jax").devices() * 8192)


def _look() -> dict[str, Any]:
    allocation = current_allocation()
    assert allocation is not None
    torch = sys.modules.get("torch")
    return {
        "pid": os.getpid(),
        "claim": allocation.gpu_memory_mb,
        "cores": list(allocation.cpu_cores),
        "affinity": sorted(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads() if torch else None,
        "environ": {name: value for name, value in os.environ.items() if name.endswith(_TOLD)},
    }


app = make_app()
