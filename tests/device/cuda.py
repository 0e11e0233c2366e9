"""The few calls of the CUDA driver that these tests make, by ctypes: where there is a driver, no framework is needed.

The library is loaded by :class:`Cuda`, so that a test can look at a process before and after.
"""

from __future__ import annotations

import ctypes
import uuid
from pathlib import Path

_KERNELS = Path(__file__).with_name("kernels.ptx")
_MB = 2**20
#: CUDA_ERROR_NOT_INITIALIZED
NOT_INITIALIZED = 3


class CudaError(Exception):
    """A call of the driver failed. ``code`` is its own, ``name`` its name for it."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.code = code
        self.name = name


class Cuda:
    """The driver's library in this process. Raises ``OSError`` where there is none."""

    def __init__(self) -> None:
        self._api = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}

    def call(self, name: str, *args: object) -> None:
        """Call a function of the driver; :class:`CudaError` unless it succeeds."""
        code = getattr(self._api, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self._api.cuGetErrorName(code, ctypes.byref(text))
            raise CudaError(name, code, (text.value or b"an unknown error").decode())

    def initialise(self) -> None:
        """What every program does first; devices are visible as the environment says at this moment."""
        self.call("cuInit", 0)

    def uuids(self) -> list[str]:
        """UUIDs of the devices that this process sees, in CUDA's order."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        found = []
        for ordinal in range(count.value):
            device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
            self.call("cuDeviceGet", ctypes.byref(device), ordinal)
            self.call("cuDeviceGetUuid_v2", raw, device)
            found.append(f"GPU-{uuid.UUID(bytes=bytes(raw))}")
        return found

    def open(self, ordinal: int = 0) -> None:
        """Make the context that frameworks use, too, and enter it."""
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.call("cuCtxSetCurrent", self._context)

    def forget(self) -> None:
        """The context is gone, and with it the kernels that were loaded."""
        self._context = ctypes.c_void_p()
        self._functions.clear()

    def allocate(self, mb: int) -> int:
        """Take so many MB of device memory, and write to all of it; returns the address."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(mb * _MB))
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(1), ctypes.c_size_t(mb * _MB))
        self.call("cuCtxSynchronize")
        return address.value

    def launch(self, kernel: str, argument: int) -> None:
        """Run one of the kernels beside this file with its one argument, and wait for its end."""
        if kernel not in self._functions:
            self._functions[kernel] = self._load(kernel)
        value = ctypes.c_uint64(argument)
        arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(value), ctypes.c_void_p))
        nothing = ctypes.c_void_p()
        self.call("cuLaunchKernel", self._functions[kernel], 1, 1, 1, 1, 1, 1, 0, nothing, arguments, nothing)
        self.call("cuCtxSynchronize")

    def _load(self, kernel: str) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_KERNELS.read_bytes() + b"\0"))
        self.call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
        return function
