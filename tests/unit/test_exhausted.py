"""Out of GPU memory: recognised in whatever framework says it, and given back as far as that can be."""

from __future__ import annotations

import sys
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from celery_allocator.isolation import free_gpu_memory, is_out_of_gpu_memory


def made(module: str, name: str, *bases: type[BaseException]) -> Any:
    """A class as a framework has it."""
    return type(name, bases or (RuntimeError,), {"__module__": module})


def error_with_code(code: int) -> BaseException:
    error: BaseException = made("torch", "AcceleratorError")("CUDA error: whatever")
    error.error_code = code  # type: ignore[attr-defined]
    return error


TORCH = made("torch", "OutOfMemoryError")
#: As seen on real GPUs (docs/internals/gpus.md), but for TensorFlow's.
THEY_SAY_SO = [
    TORCH("CUDA out of memory. Tried to allocate 2.00 GiB."),
    made("torch.cuda", "OutOfMemoryError")("CUDA out of memory."),
    error_with_code(2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.93 GiB total capacity)"),
    made("cupy.cuda.memory", "OutOfMemoryError", MemoryError)("Out of memory allocating 2,147,483,648 bytes"),
    made("cupy_backends.cuda.api.runtime", "CUDARuntimeError")("cudaErrorMemoryAllocation: out of memory"),
    made("jax.errors", "JaxRuntimeError")("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."),
    made("jaxlib.xla_extension", "XlaRuntimeError")("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    made("numba.cuda.cudadrv.driver", "CudaAPIError", Exception)(
        "[<CUresult.CUDA_ERROR_OUT_OF_MEMORY: 2>] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"
    ),
    made("tensorflow.python.framework.errors_impl", "ResourceExhaustedError", Exception)("OOM when allocating tensor"),
    made("mine", "ModelTooLarge", TORCH)("derived from it"),
]
OTHERS = [
    RuntimeError("out of memory"),
    MemoryError("of the host"),
    error_with_code(700),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    made("jax.errors", "JaxRuntimeError")("INVALID_ARGUMENT: what about RESOURCES"),
    made("numba.cuda.cudadrv.driver", "CudaAPIError", Exception)("[700] Call to cuMemcpyDtoH results in CUDA_ERROR"),
    made("mine", "OutOfMemoryError")("somebody else's class of that name"),
    ValueError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", THEY_SAY_SO, ids=lambda e: f"{type(e).__module__}.{type(e).__name__}")
def test_each_framework_is_understood(error: BaseException) -> None:
    assert is_out_of_gpu_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not_it(error: BaseException) -> None:
    assert not is_out_of_gpu_memory(error)


def test_what_is_raised_from_it_says_so_too_and_what_followed_it_does_not() -> None:
    def wrapped(explicit: bool) -> BaseException:
        try:
            try:
                raise TORCH("CUDA out of memory.")
            except RuntimeError as error:
                if explicit:
                    raise ValueError("inference failed") from error
                raise ValueError("while a smaller batch was tried")  # noqa: B904
        except ValueError as error:
            return error

    assert is_out_of_gpu_memory(wrapped(explicit=True))
    assert not is_out_of_gpu_memory(wrapped(explicit=False))
    circle = ValueError("its own cause")
    circle.__cause__ = circle
    assert not is_out_of_gpu_memory(circle)


class Tensor:
    """Something that a frame refers to."""


def test_what_frames_hold_and_frameworks_cache_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    torch, cupy = ModuleType("torch"), ModuleType("cupy")
    torch.cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: freed.append("torch"))  # type: ignore[attr-defined]
    for name in ("get_default_memory_pool", "get_default_pinned_memory_pool"):
        setattr(cupy, name, lambda name=name: SimpleNamespace(free_all_blocks=lambda: freed.append(name)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    held: list[weakref.ref[Tensor]] = []

    def inner() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise TORCH("CUDA out of memory.")

    def outer() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        try:
            inner()
        except RuntimeError as error:
            raise ValueError("of the model") from error

    try:
        outer()
    except ValueError as error:
        assert all(ref() is not None for ref in held)
        free_gpu_memory(error)
    assert [ref() for ref in held] == [None, None]
    assert freed == ["torch", "get_default_memory_pool", "get_default_pinned_memory_pool"]


def test_a_framework_that_is_broken_by_it_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=broken)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    free_gpu_memory(TORCH("CUDA out of memory."))
