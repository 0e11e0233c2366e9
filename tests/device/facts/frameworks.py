"""What frameworks take, whether their caps hold, and what they raise when there is no memory left."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery_allocator.inventory import nvml, read_use
from tests.device.facts.living import started


def raised(what: Callable[[], Any]) -> Any:
    """The class, with its bases, and the text of what a call raises."""
    try:
        what()
    except Exception as error:  # noqa: BLE001  # the error is the fact
        bases = [f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__]
        return {
            "class": bases[0],
            "bases": bases[1:-2],
            "text": str(error)[:1500],
            "code": str(getattr(error, "error_code", None)),
        }
    return "nothing"


def mine_mb() -> dict[str, int | None]:
    use = read_use(nvml.all_devices()[0].uuid)
    return {"device": use.used_mb, "this process": (use.processes or {}).get(os.getpid())}


def torch_memory() -> dict[str, Any]:
    """PyTorch: what its context takes, its cache, its cap, its errors."""
    import torch

    told: dict[str, Any] = {"version": torch.__version__, "imported": mine_mb()}
    kept = torch.ones(1, device="cuda")
    told["one number"] = mine_mb()
    (torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum().item()
    told["a product"] = mine_mb()
    large = torch.ones(2**31, dtype=torch.uint8, device="cuda")
    told["2048 MB"] = mine_mb()
    del large
    told["deleted"] = mine_mb()
    torch.cuda.empty_cache()
    told["cache emptied"] = mine_mb()
    total = torch.cuda.get_device_properties(0).total_memory
    told["total_memory"] = total
    told["mem_get_info"] = torch.cuda.mem_get_info()
    told["names"] = [str(torch.cuda.OutOfMemoryError), torch.cuda.OutOfMemoryError is torch.OutOfMemoryError]
    told["too large"] = raised(lambda: torch.empty(2**44, dtype=torch.uint8, device="cuda"))
    torch.cuda.set_per_process_memory_fraction(2**30 / total, 0)
    told["cap of 1024 MB: 900"] = raised(lambda: torch.empty(900 * 2**20, dtype=torch.uint8, device="cuda"))
    told["cap of 1024 MB: 1100"] = raised(lambda: torch.empty(1100 * 2**20, dtype=torch.uint8, device="cuda"))
    torch.cuda.empty_cache()
    parts: list[Any] = []

    def fill() -> None:
        while True:
            parts.append(torch.empty(100 * 2**20, dtype=torch.uint8, device="cuda"))

    told["cap of 1024 MB: by 100"] = raised(fill)
    told["parts of 100 MB"] = len(parts)
    told["at the cap"] = mine_mb()
    del kept
    return told


def cupy_memory() -> dict[str, Any]:
    """CuPy: its context, its pool's limit, its errors."""
    import cupy

    told: dict[str, Any] = {"version": cupy.__version__, "imported": mine_mb()}
    kept = cupy.zeros(1)
    told["one number"] = mine_mb()
    told["too large"] = raised(lambda: cupy.zeros(2**44, dtype=cupy.uint8))
    cupy.get_default_memory_pool().set_limit(size=2**30)
    told["limit of 1024 MB: 1100"] = raised(lambda: cupy.zeros(1100 * 2**20, dtype=cupy.uint8))
    del kept
    return told


def jax_memory() -> dict[str, Any]:
    """JAX as it is by default: what it takes at once, its errors."""
    return _jax()


def jax_fraction() -> dict[str, Any]:
    """JAX with XLA_PYTHON_CLIENT_MEM_FRACTION=.05."""
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = ".05"
    return _jax()


def jax_on_demand() -> dict[str, Any]:
    """JAX that takes nothing in advance, with the same fraction."""
    os.environ.update(XLA_PYTHON_CLIENT_PREALLOCATE="false", XLA_PYTHON_CLIENT_MEM_FRACTION=".05")
    return _jax()


def _jax() -> dict[str, Any]:
    import jax

    told: dict[str, Any] = {"version": jax.__version__, "imported": mine_mb(), "devices": str(jax.devices())}
    kept = jax.numpy.zeros(1).block_until_ready()
    told["one number"] = mine_mb()
    for gb in (2, 20):
        size = (gb, 2**30)
        told[f"{gb} GB"] = raised(lambda size=size: jax.numpy.zeros(size, dtype="uint8").block_until_ready())
    del kept
    return told


def numba_memory() -> dict[str, Any]:
    """numba: its context and its errors."""
    import numba
    from numba import cuda

    told: dict[str, Any] = {"version": numba.__version__}
    kept = cuda.device_array(1)
    told["one number"] = mine_mb()
    told["too large"] = raised(lambda: cuda.device_array(2**44, dtype="uint8"))
    del kept
    return told


def two_processes() -> Any:
    """Whether two PyTorch processes on one device are listed one by one."""
    uuid = nvml.all_devices()[0].uuid
    program = (
        "import os, sys, torch; kept = torch.ones(2**28, dtype=torch.uint8, device='cuda'); "
        "torch.cuda.synchronize(); print('held', os.getpid(), flush=True); sys.stdin.read()"
    )
    with started("-c", program) as first, started("-c", program) as second:
        processes = read_use(uuid).processes or {}
        return {"first": processes.get(first.pid), "second": processes.get(second.pid), "all": len(processes)}


SECTIONS = {
    "torch": torch_memory, "cupy": cupy_memory, "numba": numba_memory,
    "two processes": two_processes, "jax": jax_memory, "jax, fraction .05": jax_fraction,
    "jax, on demand": jax_on_demand,
}  # fmt: skip
