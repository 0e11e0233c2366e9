"""NVML, opened for as long as it takes to ask. The only module that imports ``pynvml`` (the package nvidia-ml-py).

A worker forks, and a handle must not cross the fork: NVML is opened and closed within each call, and what stays open
between calls (:class:`StaysOpen`) is closed before every fork. What a driver does not support is unknown (``None`` or
empty), never 0.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery_allocator.errors import GpuLostError, InventoryError

try:
    import pynvml
except ImportError:  # a broken installation; the same as a host without a driver
    pynvml = None

_log = logging.getLogger(__name__)

MB = 2**20
#: Seconds that a fork waits for a driver that hangs.
_PATIENCE_S = 2.0


class NoDriver(Exception):
    """This host has no NVML library or no loaded NVIDIA driver."""


#: Held while the library is open, and by whoever forks: a child must not get it half open, nor locked for good.
_open = threading.Lock()
_held_for_fork = False
_staying: weakref.WeakSet[Any] = weakref.WeakSet()


def _before_fork() -> None:
    global _held_for_fork  # noqa: PLW0603  # what the other two are told
    _held_for_fork = _open.acquire(timeout=_PATIENCE_S)
    if _held_for_fork:
        for one in list(_staying):
            one.let_go()


def _after_fork() -> None:
    if _held_for_fork:
        _open.release()


def _in_child() -> None:
    global _open  # noqa: PLW0603
    _open = threading.Lock()
    _staying.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


@contextmanager
def nvml() -> Iterator[Any]:
    """The binding, with the library open. Raises :class:`NoDriver`, :class:`InventoryError`, :class:`GpuLostError`."""
    api = binding()
    with _open:
        start(api)
        try:
            with errors_are_ours(api):
                yield api
        finally:
            stop(api)


class StaysOpen:
    """Keeps NVML open between calls: it is closed before a fork, and by who meets an error."""

    def __init__(self) -> None:
        self._api: Any = None

    def close(self) -> None:
        """Close what is open."""
        with suppress(NoDriver, InventoryError), self._kept_open():
            self.let_go()

    def let_go(self) -> None:
        """Likewise. The lock is held."""
        api, self._api = self._api, None
        if api is not None:
            self._free(api)
            stop(api)

    @contextmanager
    def _kept_open(self) -> Iterator[Any]:
        """The binding, with the lock held. Raises :class:`NoDriver`, :class:`InventoryError`, :class:`GpuLostError`."""
        api = binding()
        _staying.add(self)
        with _open, errors_are_ours(api):
            yield api

    def _begin(self, api: Any) -> None:
        start(api)
        self._api = api

    def _free(self, api: Any) -> None:
        """Give back what is held of the library, before it is closed."""


@contextmanager
def reading(uuid: str) -> Iterator[None]:
    """Where there is no driver, the GPU or MIG slice with that UUID cannot be read: :class:`InventoryError`."""
    try:
        yield
    except NoDriver as absent:
        raise InventoryError(f"the GPU {uuid} cannot be read: {absent}") from absent


def binding() -> Any:
    """The module ``pynvml``. Raises :class:`NoDriver`, :class:`InventoryError`."""
    api: Any = pynvml
    if api is None:
        raise NoDriver("the package nvidia-ml-py is not installed")
    if not hasattr(api, "nvmlInit") or not hasattr(api, "NVMLError"):
        raise InventoryError(
            f"the module pynvml at {getattr(api, '__file__', None)} is not NVIDIA's. "
            "Install the real one: pip install --force-reinstall nvidia-ml-py"
        )
    return api


def start(api: Any) -> None:
    """Open the library: once more, where it is open. Raises :class:`NoDriver`, :class:`InventoryError`."""
    try:
        api.nvmlInit()
    except (api.NVMLError_LibraryNotFound, api.NVMLError_DriverNotLoaded) as error:
        raise NoDriver(f"NVML says {str(error)!r} (is the NVIDIA driver installed and loaded?)") from error
    except api.NVMLError as error:
        raise InventoryError(f"NVML cannot be opened: {error}. {go_without()}") from error


def stop(api: Any) -> None:
    """Close the library as often as it was opened."""
    try:
        api.nvmlShutdown()
    except api.NVMLError as error:
        _log.debug("closing NVML: %s", error)


@contextmanager
def errors_are_ours(api: Any) -> Iterator[None]:
    """NVML's errors as ours: :class:`GpuLostError` for a GPU that fell off the bus, else :class:`InventoryError`."""
    try:
        yield
    except api.NVMLError_GpuIsLost as error:
        raise GpuLostError(f"NVML cannot read this host's GPUs: {error}. {go_without()}") from error
    except api.NVMLError as error:
        raise InventoryError(f"NVML cannot read this host's GPUs: {error}. {go_without()}") from error


def supported(api: Any, ask: Callable[..., Any], *args: Any, also: tuple[int, ...] = ()) -> Any:
    """What a query answers; ``None`` where the driver or the GPU does not support it.

    ``also``: further codes of NVML's that mean so for this query.
    """
    unsupported = {
        api.NVML_ERROR_NOT_SUPPORTED,
        api.NVML_ERROR_NO_PERMISSION,
        api.NVML_ERROR_FUNCTION_NOT_FOUND,
        getattr(api, "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", None),
        *also,
    }
    try:
        return ask(*args)
    except api.NVMLError as error:
        if error.value not in unsupported:
            raise
        _log.debug("%s: %s", getattr(ask, "__name__", ask), error)
        return None


def memory(api: Any, handle: Any) -> Any:
    """Memory, what the driver keeps for itself apart where it tells that (second version of the query)."""
    version = getattr(api, "nvmlMemory_v2", None)
    second = None if version is None else supported(api, api.nvmlDeviceGetMemoryInfo, handle, version)
    return supported(api, api.nvmlDeviceGetMemoryInfo, handle) if second is None else second


def handle_of(api: Any, uuid: str) -> Any:
    """The GPU or MIG slice with that UUID.

    By the documentation of ``nvmlDeviceGetHandleByUUID`` (nvml.h) it fails if *any* GPU of the host has fallen off the
    bus or has another fault: then the one that is meant is looked for among those that answer.
    """
    try:
        return api.nvmlDeviceGetHandleByUUID(uuid.encode())
    except api.NVMLError as error:
        found = _search(api, uuid)
        if found is None:
            raise
        _log.debug("by its UUID %s cannot be had (%s), by its index it can", uuid, error)
        return found


def board_of(api: Any, handle: Any, uuid: str) -> Any:
    """The GPU itself, of which ``handle`` is that or a MIG slice."""
    return api.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if is_slice(uuid) else handle


def _search(api: Any, uuid: str) -> Any:
    try:
        count = api.nvmlDeviceGetCount()
    except api.NVMLError:
        return None
    for index in range(count):
        try:
            gpu = api.nvmlDeviceGetHandleByIndex(index)
            for handle in slices_of(api, gpu).values() if is_slice(uuid) else (gpu,):
                if text(api.nvmlDeviceGetUUID(handle)) == uuid:
                    return handle
        except api.NVMLError as error:
            _log.debug("GPU %d: %s", index, error)
    return None


def slices_of(api: Any, gpu: Any) -> dict[int, Any]:
    """The MIG slices of a GPU (compute instances, as CUDA sees them), by the driver's numbers."""
    found = {}
    for number in range(api.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found[number] = api.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
        except (api.NVMLError_NotFound, api.NVMLError_InvalidArgument):
            continue  # this place is not taken
    return found


def is_slice(uuid: str) -> bool:
    """Whether that is the UUID of a MIG slice."""
    return uuid.startswith("MIG-")


def text(value: str | bytes) -> str:
    """Releases of the binding differ: some return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def go_without() -> str:
    """What to do where GPUs cannot be had."""
    return "To go on without GPUs, set ALLOCATOR_DEVICES=none"
