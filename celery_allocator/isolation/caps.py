"""Caps on the GPU memory that a task's framework takes: where the framework has one, and before it allocates.

They hold for the framework's own allocator. The process's context and what libraries like cuBLAS take come on top of
that: about 520 MB, with PyTorch up to 710 (docs/internals/gpus.md). So a cap is the claim less :data:`ALLOWANCE_MB`.

No framework is imported here, and CUDA is not initialised for it: where it is not yet, a variable of the environment
does.
Only for processes that run one task at a time (prefork and solo pools).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from celery_allocator.isolation.cuda import cuda_is_initialised
from celery_allocator.isolation.variables import set_variables

logger = logging.getLogger(__name__)

#: MB of a claim that are left for the context; half of the claim at most.
ALLOWANCE_MB = 512
_MB = 2**20
#: From this version on PyTorch takes its cap from the environment; older ones would not start with it.
_TORCH_READS = (2, 11)
_TORCH_KEY = "per_process_memory_fraction"
_TORCH_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_JAX_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_CUPY_VARIABLE = "CUPY_GPU_MEMORY_LIMIT"
#: Share of what is free that JAX takes at most: more than all would be memory of the host.
_MOST_OF_JAX = 0.95


@dataclass(frozen=True)
class Claimed:
    """GPU memory that a task was granted: ``memory_mb`` on each of its GPUs, whose ``totals_mb`` are known."""

    memory_mb: int
    totals_mb: Sequence[int]

    @property
    def cap_mb(self) -> int:
        """MB that a framework may allocate on each GPU."""
        return self.memory_mb - min(ALLOWANCE_MB, self.memory_mb // 2)

    @property
    def whole(self) -> bool:
        """Whether all memory of its GPUs was claimed."""
        return self.memory_mb >= min(self.totals_mb)

    @property
    def fraction(self) -> float:
        """What a framework may allocate, as a share of the smallest GPU's memory."""
        return self.cap_mb / min(self.totals_mb)


def cap_gpu_memory(undo: ExitStack, claimed: Claimed, free_mb: Callable[[], Sequence[int]]) -> None:
    """Have the frameworks of this process allocate no more than ``claimed``; closing ``undo`` takes that back.

    What is set in the environment already stays, and who has claimed all of its GPUs is not capped. ``free_mb`` tells
    what is free of each GPU now (empty: nobody knows); asked where JAX is installed, whose cap is a share of that.
    """
    if claimed.whole:
        return
    for cap in (_cap_torch, _cap_cupy, _cap_tensorflow):
        try:
            cap(undo, claimed)
        except Exception as error:  # noqa: BLE001  # whatever a framework raises: the task runs without that cap
            logger.warning("GPU memory is not capped at %d MB (%s): %s", claimed.cap_mb, cap.__name__, error)
    _cap_jax(undo, claimed, free_mb)


# --- PyTorch


def _cap_torch(undo: ExitStack, claimed: Claimed) -> None:
    torch: Any = sys.modules.get("torch")
    if any(_TORCH_KEY in os.environ.get(name, "") for name in _TORCH_VARIABLES):
        return
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        _set_fraction(undo, cuda, claimed.fraction)
        return
    built: Any = getattr(torch, "version", None)
    if _torch_reads_its_cap() and (built is None or built.cuda):
        name = next((name for name in _TORCH_VARIABLES if os.environ.get(name)), _TORCH_VARIABLES[0])
        kept = [os.environ[name]] if os.environ.get(name) else []
        set_variables(undo, {name: ",".join([*kept, f"{_TORCH_KEY}:{claimed.fraction:.6f}"])})
        # It has read that when it was first used, and reads it no more.
        undo.callback(_lift_torch)
    elif cuda is not None and cuda.is_available():
        _set_fraction(undo, cuda, claimed.fraction)


def _set_fraction(undo: ExitStack, cuda: Any, fraction: float) -> None:
    for device in range(cuda.device_count()):
        asked = getattr(cuda, "get_per_process_memory_fraction", None)
        if asked is not None and asked(device) < 1.0:  # the task's own: ours are taken back
            continue
        undo.callback(cuda.set_per_process_memory_fraction, 1.0, device)
        cuda.set_per_process_memory_fraction(fraction, device)


def _lift_torch() -> None:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        for device in range(cuda.device_count()):
            cuda.set_per_process_memory_fraction(1.0, device)


@cache
def _torch_reads_its_cap() -> bool:
    """Whether the installed PyTorch does. One that was built without CUDA might not know the word."""
    try:
        installed = version("torch")
        major, minor = installed.split(".")[:2]
        return (int(major), int(minor)) >= _TORCH_READS and not installed.endswith("+cpu")
    except (PackageNotFoundError, ValueError):
        return False


# --- CuPy


def _cap_cupy(undo: ExitStack, claimed: Claimed) -> None:
    if _CUPY_VARIABLE in os.environ:
        return
    limit = claimed.cap_mb * _MB
    # Read when the pool of a GPU is first used.
    set_variables(undo, {_CUPY_VARIABLE: str(limit)})
    # Whichever way it came to it, also where CuPy is imported by the task.
    undo.callback(_swap_limits, limit, 0)
    _swap_limits(0, limit)


def _swap_limits(before: int, now: int) -> None:
    """Limit CuPy's pool on each GPU where the limit is ``before``; in bytes, 0: none. Another one is the task's own."""
    cupy: Any = sys.modules.get("cupy")
    if cupy is None or not cuda_is_initialised():
        return
    pool = cupy.get_default_memory_pool()
    for device in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(device):
            if pool.get_limit() == before:
                pool.set_limit(size=now)


# --- what a process keeps for its life

#: MB that a framework was capped at, which it keeps once it is initialised.
_kept: dict[str, int] = {}


def kept_cap_mb() -> int | None:
    """MB at which a framework of this process stays capped from an earlier task on; ``None``: none is.

    A task that has claimed more needs another process.
    """
    caps = [_kept[name] for name, initialised in _KEEPERS.items() if name in _kept and initialised()]
    return min(caps, default=None)


def _cap_tensorflow(_undo: ExitStack, claimed: Claimed) -> None:
    config = getattr(sys.modules.get("tensorflow"), "config", None)
    if config is None or _tensorflow_is_initialised():
        return
    limit = [config.LogicalDeviceConfiguration(memory_limit=claimed.cap_mb)]
    for gpu in config.list_physical_devices("GPU"):
        if "tensorflow" in _kept or not config.get_logical_device_configuration(gpu):  # else it is the task's own
            config.set_logical_device_configuration(gpu, limit)
            _kept["tensorflow"] = claimed.cap_mb


def _tensorflow_is_initialised() -> bool:
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    return bool(getattr(context, "_initialized", False))


def _cap_jax(undo: ExitStack, claimed: Claimed, free_mb: Callable[[], Sequence[int]]) -> None:
    """JAX reads its share when it is first used, and takes it of what is free then."""
    if _JAX_VARIABLE in os.environ or _jax_is_initialised() or not _jax_is_there():
        return
    free = [mb for mb in free_mb() if mb > 0]
    if free:
        share = min(_MOST_OF_JAX, claimed.cap_mb / min(free))
        set_variables(undo, {_JAX_VARIABLE: f"{share:.6f}"})
        _kept["jax"] = claimed.cap_mb


def _jax_is_initialised() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(getattr(bridge, "_backends", None))


@cache
def _jax_is_there() -> bool:
    return find_spec("jax") is not None


_KEEPERS: dict[str, Callable[[], bool]] = {"tensorflow": _tensorflow_is_initialised, "jax": _jax_is_initialised}
