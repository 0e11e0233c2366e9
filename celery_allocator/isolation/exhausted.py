"""GPU memory that did not suffice: how frameworks say so, and how they are asked to give back what they keep.

Classes and texts are those of docs/internals/gpus.md. Nothing is imported: an error tells by the name and module of its
classes.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

_ANY = re.compile("")
#: Package and name of an exception's class, or of one that it is derived from: what its text has to say, too.
_CLASSES: dict[tuple[str, str], re.Pattern[str]] = {
    ("torch", "OutOfMemoryError"): _ANY,
    ("cupy", "OutOfMemoryError"): _ANY,
    ("cupy_backends", "CUDARuntimeError"): re.compile("cudaErrorMemoryAllocation"),
    ("jax", "JaxRuntimeError"): re.compile("RESOURCE_EXHAUSTED"),
    ("jaxlib", "XlaRuntimeError"): re.compile("RESOURCE_EXHAUSTED"),
    ("jaxlib", "JaxRuntimeError"): re.compile("RESOURCE_EXHAUSTED"),
    ("numba", "CudaAPIError"): re.compile("OUT_OF_MEMORY"),
    ("tensorflow", "ResourceExhaustedError"): _ANY,
}
#: What PyTorch says in an error of no class of its own.
_RUNTIME_TEXT = re.compile(r"CUDA error: (?:out of memory|CUBLAS_STATUS_ALLOC_FAILED)|^CUDA out of memory")
#: ``CUDA_ERROR_OUT_OF_MEMORY``
_CODE = 2
#: Explicit causes of an error that are looked at, at most.
_DEEPEST = 10


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether a framework raised ``error``, or what it was raised from (``raise … from``), for want of GPU memory."""
    return any(map(_says_so, _causes(error)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _says_so(error: BaseException) -> bool:
    for cls in type(error).__mro__:
        package = cls.__module__.partition(".")[0]
        text = _CLASSES.get((package, cls.__name__))
        if text is not None and text.search(str(error)):
            return True
        if (package, cls.__name__) == ("torch", "AcceleratorError") and getattr(error, "error_code", None) == _CODE:
            return True
    return isinstance(error, RuntimeError) and _RUNTIME_TEXT.search(str(error)) is not None


def free_gpu_memory(error: BaseException) -> None:
    """Give back what the task that ended with ``error`` holds: what its frames refer to, and what frameworks cached.

    As far as that can be done: the context stays as long as the process, and what JAX and TensorFlow have taken, too.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
    gc.collect()
    for free in (_free_torch, _free_cupy):
        try:
            free()
        except Exception as failed:  # noqa: BLE001  # after such an error a framework may raise anything
            logger.debug("%s: %s", free.__name__, failed)


def _free_torch() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _free_cupy() -> None:
    cupy: Any = sys.modules.get("cupy")
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()
