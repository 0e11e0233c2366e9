"""NVIDIA GPUs and MIG slices of this host, by NVML."""

from __future__ import annotations

import logging
from typing import Any

from celery_allocator.errors import InventoryError, SettingsError
from celery_allocator.inventory.nvml.session import MB, NoDriver, go_without, memory, nvml, slices_of, supported, text
from celery_allocator.inventory.nvml.topology import affinity, numa_node
from celery_allocator.model import DeviceInventory

_log = logging.getLogger(__name__)

_TRY_SIMULATED = "To try without a GPU, set ALLOCATOR_DEVICES=sim:1x24576"


def all_devices() -> tuple[DeviceInventory, ...]:
    """Every GPU that NVML can read; none on a host without the library or the driver.

    Where MIG is on, the slices of a GPU stand for it. A GPU that cannot be read (fallen off the bus, say) is left out
    with a warning, so that it does not take the others down; if none can be read, that is an :class:`InventoryError`.
    """
    try:
        found, broken = _scan()
    except NoDriver as absent:
        _log.debug("no GPUs: %s", absent)
        return ()
    if broken and not found:
        raise InventoryError(f"no GPU of this host can be read: {_listed(broken)}. {go_without()}")
    for number, cause in broken.items():
        _log.warning("GPU %s is left out: %s", number, cause)
    return tuple(found)


def named_devices(spec: str) -> tuple[DeviceInventory, ...]:
    """The GPUs that ``spec`` names by index, id or UUID, joined by commas, in the order of their indexes.

    A MIG slice is named by ``GPU:SLICE`` (``0:1``), id or UUID. Raises :class:`InventoryError` saying which one cannot
    be had and why.
    """
    names = [name.strip() for name in spec.split(",") if name.strip()]
    asked = f"allocator_devices (ALLOCATOR_DEVICES) is {spec!r}"
    if not names:
        raise SettingsError(f"{asked}: name indexes or UUIDs, or use auto, none or sim:COUNTxMEMORY")
    try:
        found, broken = _scan()
    except NoDriver as absent:
        raise InventoryError(f"{asked}, but this host's GPUs cannot be read: {absent}. {_TRY_SIMULATED}") from absent
    by_name = {name: device for device in found for name in device.names}
    for name in names:
        if name not in by_name:
            there = ", ".join(f"{device.number} ({device.uuid})" for device in found) or "none"
            failing = f"; cannot be read: {_listed(broken)}" if broken else ""
            raise InventoryError(f"{asked}, but {name!r} is not among this host's GPUs. There: {there}{failing}")
    chosen = {by_name[name].device_id for name in names}
    return tuple(device for device in found if device.device_id in chosen)


def _scan() -> tuple[list[DeviceInventory], dict[str, str]]:
    """The readable GPUs, and why each of the others (by number) cannot be read."""
    found: list[DeviceInventory] = []
    broken: dict[str, str] = {}
    with nvml() as api:
        for index in range(api.nvmlDeviceGetCount()):
            try:
                handle = api.nvmlDeviceGetHandleByIndex(index)
                sliced = supported(api, api.nvmlDeviceGetMigMode, handle)
                if sliced and sliced[0]:
                    slices = [_read(api, one, handle, index, n) for n, one in slices_of(api, handle).items()]
                    if not slices:
                        broken[str(index)] = "MIG is on, and it has no slices (nvidia-smi mig -cgi … -C makes them)"
                    found += slices
                else:
                    found.append(_read(api, handle, handle, index))
            except api.NVMLError_NotSupported:
                broken[str(index)] = "its driver does not report its memory, UUID or name"
            except api.NVMLError as error:
                broken[str(index)] = str(error)
    return found, broken


def _read(api: Any, handle: Any, board: Any, index: int, number: int | None = None) -> DeviceInventory:
    """One GPU, or slice ``number`` of one. ``board``: the GPU itself, which knows where it sits."""
    have = memory(api, handle)
    if have is None:
        raise api.NVMLError(api.NVML_ERROR_NOT_SUPPORTED)
    reserved = getattr(have, "reserved", None)
    capability = supported(api, api.nvmlDeviceGetCudaComputeCapability, board)
    return DeviceInventory(
        device_id=f"gpu_{index}" if number is None else f"gpu_{index}_mig_{number}",
        index=index,
        uuid=text(api.nvmlDeviceGetUUID(handle)),
        model=text(api.nvmlDeviceGetName(handle)),
        memory_mb=(int(have.total) - int(reserved or 0)) // MB,
        cpu_affinity=affinity(api, board),
        reserved_mb=None if reserved is None else int(reserved) // MB,
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        numa_node=numa_node(api, board),
        parent_uuid=None if number is None else text(api.nvmlDeviceGetUUID(board)),
    )


def _listed(broken: dict[str, str]) -> str:
    return "; ".join(f"GPU {number}: {cause}" for number, cause in broken.items())
