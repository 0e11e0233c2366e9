"""Where GPUs sit: cores and NUMA node near each, and how near they are to each other."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery_allocator.inventory.nvml.session import NoDriver, handle_of, nvml, supported
from celery_allocator.model import DeviceInventory, Link

_log = logging.getLogger(__name__)

_WORD_BITS = 64
#: Words of the core mask asked of NVML, at least: hosts with sparse core ids have higher ids than cores.
_MIN_WORDS = 16
#: Words of the mask of NUMA nodes.
_NODE_WORDS = 4
_SCOPE_NODE = 0  # NVML_AFFINITY_SCOPE_NODE
SYS = Path("/sys")


def affinity(api: Any, handle: Any) -> tuple[int, ...]:
    """Core ids near the GPU; empty where the platform does not say (containers and virtual machines often do not).

    Where the driver does not tell them, they are those of the GPU's NUMA node.
    """
    configured = os.sysconf("SC_NPROCESSORS_CONF")
    words = max(_MIN_WORDS, -(-configured // _WORD_BITS))
    try:
        return _bits(api.nvmlDeviceGetCpuAffinity(handle, words))
    except api.NVMLError as error:
        _log.debug("no core affinity: %s", error)
    node = numa_node(api, handle)
    return () if node is None else cores_of_node(node)


def numa_node(api: Any, handle: Any) -> int | None:
    """The NUMA node next to the GPU, by the kernel or the driver; ``None`` where neither says.

    Not ``nvmlDeviceGetNumaNodeId``: that is the node which a GPU's own memory makes up, on platforms that count it so.
    """
    pci = supported(api, api.nvmlDeviceGetPciInfo_v3, handle)
    told = None if pci is None else _number(SYS / "bus/pci/devices" / slot(pci.busId) / "numa_node")
    if told is not None and told >= 0:
        return told
    try:
        nodes = _bits(api.nvmlDeviceGetMemoryAffinity(handle, _NODE_WORDS, _SCOPE_NODE))
    except api.NVMLError as error:
        _log.debug("no NUMA node: %s", error)
        return None
    return nodes[0] if len(nodes) == 1 else None


def cores_of_node(node: int) -> tuple[int, ...]:
    """Core ids of a NUMA node, as the kernel lists them (``0-15,32-47``); empty where it does not."""
    try:
        listed = (SYS / f"devices/system/node/node{node}/cpulist").read_text()
        ends = [part.partition("-") for part in listed.strip().split(",") if part]
        return tuple(core for low, _, high in ends for core in range(int(low), int(high or low) + 1))
    except (OSError, ValueError) as error:
        _log.debug("no cores of NUMA node %d: %s", node, error)
        return ()


def slot(bus_id: str | bytes) -> str:
    """A PCI address as the kernel writes it: NVML's ``00000000:3B:00.0`` is ``0000:3b:00.0``."""
    told = bus_id.decode() if isinstance(bus_id, bytes) else bus_id
    domain, _, rest = told.lower().partition(":")
    return f"{int(domain or '0', 16):04x}:{rest}"


def links(devices: Iterable[DeviceInventory]) -> dict[tuple[str, str], Link]:
    """How near each two of these GPUs are, by their ids, the smaller first as text. MIG slices have no links: a process
    can use one of them only. Raises :class:`InventoryError`.
    """
    whole = sorted((one for one in devices if one.parent_uuid is None), key=lambda one: one.device_id)
    if len(whole) < 2:
        return {}
    try:
        with nvml() as api:
            handles = {one.device_id: handle_of(api, one.uuid) for one in whole}
            pairs = itertools.combinations(handles, 2)
            return {pair: _link(api, handles[pair[0]], handles[pair[1]]) for pair in pairs}
    except NoDriver as absent:
        _log.debug("no links: %s", absent)
        return {}


def _link(api: Any, one: Any, other: Any) -> Link:
    try:
        if _nvlink(api, one, other):
            return Link.NVLINK
        level = api.nvmlDeviceGetTopologyCommonAncestor(one, other)
    except api.NVMLError as error:
        _log.debug("no topology: %s", error)
        return Link.OTHER
    if level <= api.NVML_TOPOLOGY_MULTIPLE:
        return Link.SWITCH
    if level <= api.NVML_TOPOLOGY_HOSTBRIDGE:
        return Link.BRIDGE
    return Link.NUMA if level <= api.NVML_TOPOLOGY_NODE else Link.OTHER


def _nvlink(api: Any, one: Any, other: Any) -> bool:
    """Whether NVLink joins the two, directly or by a switch."""
    status = supported(api, api.nvmlDeviceGetP2PStatus, one, other, api.NVML_P2P_CAPS_INDEX_NVLINK)
    if status is not None:
        return bool(status == api.NVML_P2P_STATUS_OK)
    # Drivers that cannot be asked for a pair: look where the links of the one end.
    there = supported(api, api.nvmlDeviceGetPciInfo_v3, other)
    return there is not None and slot(there.busId) in _ends(api, one)


def _ends(api: Any, handle: Any) -> set[str]:
    """PCI addresses at the other ends of a GPU's active NVLinks."""
    found = set()
    for link in range(api.NVML_NVLINK_MAX_LINKS):
        try:
            if api.nvmlDeviceGetNvLinkState(handle, link):
                found.add(slot(api.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId))
        except api.NVMLError:  # so the driver says that there is no such link
            continue
    return found


def _bits(mask: Iterable[int]) -> tuple[int, ...]:
    return tuple(
        word * _WORD_BITS + bit for word, bits in enumerate(mask) for bit in range(_WORD_BITS) if bits >> bit & 1
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
