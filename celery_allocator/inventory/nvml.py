"""NVIDIA GPUs by NVML. The only module that imports ``pynvml`` (the package nvidia-ml-py).

NVML is opened and closed within each call: a worker forks, and a handle must not cross the fork. What a driver does
not support is unknown (``None`` or empty), never 0.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery_allocator.errors import InventoryError, SettingsError
from celery_allocator.model import DeviceInventory

try:
    import pynvml
except ImportError:  # a broken installation; the same as a host without a driver
    pynvml = None

_log = logging.getLogger(__name__)

_MB = 2**20
_WORD_BITS = 64
#: Words of the core mask asked of NVML, at least: hosts with sparse core ids have higher ids than cores.
_MIN_WORDS = 16
_TRY_SIMULATED = "To try without a GPU, set ALLOCATOR_DEVICES=sim:1x24576"


class _NoDriver(Exception):
    """This host has no NVML library or no loaded NVIDIA driver."""


def all_devices() -> tuple[DeviceInventory, ...]:
    """Every GPU that NVML can read; none on a host without the library or the driver.

    A GPU that cannot be read (fallen off the bus, say) is left out with a warning, so that it does not take the
    others down; if none can be read, that is an :class:`InventoryError`.
    """
    try:
        found, broken = _scan()
    except _NoDriver as absent:
        _log.debug("no GPUs: %s", absent)
        return ()
    if broken and not found:
        raise InventoryError(f"no GPU of this host can be read: {_listed(broken)}. {_go_without()}")
    for index, cause in broken.items():
        _log.warning("GPU %d is left out: %s", index, cause)
    return tuple(found)


def named_devices(spec: str) -> tuple[DeviceInventory, ...]:
    """The GPUs that ``spec`` names by index, id or UUID, joined by commas, in the order of their indexes.

    Raises :class:`InventoryError` saying which one cannot be had and why.
    """
    names = [name.strip() for name in spec.split(",") if name.strip()]
    asked = f"allocator_devices (ALLOCATOR_DEVICES) is {spec!r}"
    if not names:
        raise SettingsError(f"{asked}: name indexes or UUIDs, or use auto, none or sim:COUNTxMEMORY")
    try:
        found, broken = _scan()
    except _NoDriver as absent:
        raise InventoryError(f"{asked}, but this host's GPUs cannot be read: {absent}. {_TRY_SIMULATED}") from absent
    by_name = {name: device for device in found for name in (str(device.index), device.device_id, device.uuid)}
    for name in names:
        if name not in by_name:
            there = ", ".join(f"{device.index} ({device.uuid})" for device in found) or "none"
            failing = f"; cannot be read: {_listed(broken)}" if broken else ""
            raise InventoryError(f"{asked}, but {name!r} is not among this host's GPUs. There: {there}{failing}")
    chosen = {by_name[name].index: by_name[name] for name in names}
    return tuple(chosen[index] for index in sorted(chosen))


@dataclass(frozen=True)
class GpuUse:
    """What the driver says of one GPU now. ``None``: it does not support that.

    ``used_mb``: memory in use; what the driver keeps for itself counts only with drivers that do not tell it apart.
    ``processes``: GPU memory in MB by process id, as the driver counts ids (in some containers, those of the host);
    ``None`` for a process whose memory it does not tell.
    ``utilization``: share of the last sampling period in which a kernel ran, 0 to 1.
    """

    used_mb: int | None
    processes: Mapping[int, int | None] | None
    utilization: float | None
    temperature_c: int | None
    power_w: float | None


def read_use(uuid: str) -> GpuUse:
    """What is in use of the GPU with that UUID now. Raises :class:`InventoryError` if the driver cannot reach it."""
    try:
        with _session() as api:
            handle = api.nvmlDeviceGetHandleByUUID(uuid.encode())
            memory = _memory(api, handle)
            rates = _supported(api, api.nvmlDeviceGetUtilizationRates, handle)
            power = _supported(api, api.nvmlDeviceGetPowerUsage, handle)
            return GpuUse(
                used_mb=None if memory is None else int(memory.used) // _MB,
                processes=_processes(api, handle),
                utilization=None if rates is None else int(rates.gpu) / 100,
                temperature_c=_supported(api, api.nvmlDeviceGetTemperature, handle, api.NVML_TEMPERATURE_GPU),
                power_w=None if power is None else int(power) / 1000,
            )
    except _NoDriver as absent:
        raise InventoryError(f"the GPU {uuid} cannot be read: {absent}") from absent


def _memory(api: Any, handle: Any) -> Any:
    """Memory, what the driver keeps for itself apart where it tells that (second version of the query)."""
    version = getattr(api, "nvmlMemory_v2", None)
    second = None if version is None else _supported(api, api.nvmlDeviceGetMemoryInfo, handle, version)
    return _supported(api, api.nvmlDeviceGetMemoryInfo, handle) if second is None else second


def _processes(api: Any, handle: Any) -> dict[int, int | None] | None:
    """Compute and graphics processes; one that is both has the same memory in both lists."""
    lists = [
        _supported(api, api.nvmlDeviceGetComputeRunningProcesses, handle),
        _supported(api, api.nvmlDeviceGetGraphicsRunningProcesses, handle),
    ]
    if lists[0] is None:
        return None
    return {
        int(process.pid): None if process.usedGpuMemory is None else int(process.usedGpuMemory) // _MB
        for listed in lists
        for process in listed or ()
    }


def _supported(api: Any, ask: Callable[..., Any], *args: Any) -> Any:
    """What a query answers; ``None`` where the driver or the GPU does not support it."""
    try:
        return ask(*args)
    except (api.NVMLError_NotSupported, api.NVMLError_NoPermission, api.NVMLError_FunctionNotFound) as error:
        _log.debug("%s: %s", getattr(ask, "__name__", ask), error)
        return None


def _scan() -> tuple[list[DeviceInventory], dict[int, str]]:
    """The readable GPUs, and why each of the others (by index) cannot be read."""
    found: list[DeviceInventory] = []
    broken: dict[int, str] = {}
    with _session() as api:
        for index in range(api.nvmlDeviceGetCount()):
            try:
                found.append(_read(api, index))
            except api.NVMLError_NotSupported:
                broken[index] = "its driver does not report its memory, UUID or name"
            except api.NVMLError as error:
                broken[index] = str(error)
    return found, broken


#: Held while the library is open, and by whoever forks: a child must not get it half open, nor locked for good.
_open = threading.Lock()
#: Seconds that a fork waits for a driver that hangs.
_PATIENCE_S = 2.0
_held_for_fork = False


def _before_fork() -> None:
    global _held_for_fork  # noqa: PLW0603  # what the other two are told
    _held_for_fork = _open.acquire(timeout=_PATIENCE_S)


def _after_fork() -> None:
    if _held_for_fork:
        _open.release()


def _in_child() -> None:
    global _open  # noqa: PLW0603
    _open = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


@contextmanager
def _session() -> Iterator[Any]:
    api: Any = pynvml
    if api is None:
        raise _NoDriver("the package nvidia-ml-py is not installed")
    if not hasattr(api, "nvmlInit") or not hasattr(api, "NVMLError"):
        raise InventoryError(
            f"the module pynvml at {getattr(api, '__file__', None)} is not NVIDIA's. "
            "Install the real one: pip install --force-reinstall nvidia-ml-py"
        )
    with _open:
        yield from _opened(api)


def _opened(api: Any) -> Iterator[Any]:
    try:
        api.nvmlInit()
    except (api.NVMLError_LibraryNotFound, api.NVMLError_DriverNotLoaded) as error:
        raise _NoDriver(f"NVML says {str(error)!r} (is the NVIDIA driver installed and loaded?)") from error
    except api.NVMLError as error:
        raise InventoryError(f"NVML cannot be opened: {error}. {_go_without()}") from error
    try:
        yield api
    except api.NVMLError as error:
        raise InventoryError(f"NVML cannot read this host's GPUs: {error}. {_go_without()}") from error
    finally:
        try:
            api.nvmlShutdown()
        except api.NVMLError as error:
            _log.debug("closing NVML: %s", error)


def _read(api: Any, index: int) -> DeviceInventory:
    handle = api.nvmlDeviceGetHandleByIndex(index)
    return DeviceInventory(
        device_id=f"gpu_{index}",
        index=index,
        uuid=_text(api.nvmlDeviceGetUUID(handle)),
        model=_text(api.nvmlDeviceGetName(handle)),
        memory_mb=int(api.nvmlDeviceGetMemoryInfo(handle).total) // _MB,
        cpu_affinity=_affinity(api, handle),
    )


def _affinity(api: Any, handle: Any) -> tuple[int, ...]:
    """Core ids near the GPU; empty where the platform does not say (containers and virtual machines often do not)."""
    configured = os.sysconf("SC_NPROCESSORS_CONF")
    words = max(_MIN_WORDS, -(-configured // _WORD_BITS))
    try:
        mask = api.nvmlDeviceGetCpuAffinity(handle, words)
    except api.NVMLError as error:
        _log.debug("no core affinity: %s", error)
        return ()
    return tuple(
        word * _WORD_BITS + bit for word, bits in enumerate(mask) for bit in range(_WORD_BITS) if bits >> bit & 1
    )


def _text(value: str | bytes) -> str:
    """Releases of the binding differ: some return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _listed(broken: dict[int, str]) -> str:
    return "; ".join(f"GPU {index}: {cause}" for index, cause in broken.items())


def _go_without() -> str:
    return "To go on without GPUs, set ALLOCATOR_DEVICES=none"
