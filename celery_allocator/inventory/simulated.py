"""Simulated GPUs: devices that exist in the ledger only, for trying things out and for tests."""

from __future__ import annotations

import itertools
import re

from celery_allocator.errors import SettingsError
from celery_allocator.model import FIELDS, DeviceInventory, Link

PREFIX = "sim:"
MODEL = "Simulated GPU"
#: How the UUID of each of them begins.
UUID_PREFIX = "GPU-sim-"

#: More than any host carries; a larger count is a typing mistake.
MAX_DEVICES = 1024

_GROUP = re.compile(r"(\d{1,9})x(\d{1,15})(:nvlink)?", re.ASCII)


def devices(spec: str, node: str) -> tuple[DeviceInventory, ...]:
    """The devices of ``spec`` on ``node``: ``sim:2x24576`` is two of 24576 MB; groups are joined by commas.

    ``sim:4x24576:nvlink`` are four joined by NVLink (see :func:`links`). UUIDs are made from the node and the index, so
    that they are the same at every start. Raises :class:`SettingsError` naming the value and the form it must have.
    """
    return tuple(
        DeviceInventory(
            device_id=f"gpu_{index}",
            index=index,
            uuid=f"{UUID_PREFIX}{node}-{index}",
            model=MODEL,
            memory_mb=memory_mb,
            simulated=True,
        )
        for index, (memory_mb, _) in enumerate(_each(spec))
    )


def links(spec: str) -> dict[tuple[str, str], Link]:
    """How near the devices of ``spec`` are: those of a group with ``:nvlink`` by NVLink; of others it is not known."""
    groups: dict[int, list[str]] = {}
    for index, (_, group) in enumerate(_each(spec)):
        if group is not None:
            groups.setdefault(group, []).append(f"gpu_{index}")
    pairs = (pair for ids in groups.values() for pair in itertools.combinations(sorted(ids), 2))
    return dict.fromkeys(pairs, Link.NVLINK)


def _each(spec: str) -> list[tuple[int, int | None]]:
    """Memory in MB of each device, and the number of its group where that is joined by NVLink."""
    found: list[tuple[int, int | None]] = []
    for number, group in enumerate(spec.strip()[len(PREFIX) :].split(",")):
        match = _GROUP.fullmatch(group.strip().lower())
        if match is None:
            raise _bad(spec, f"{group.strip()!r} is not COUNTxMEMORY")
        count, memory_mb = int(match[1]), int(match[2])
        if not 1 <= count <= MAX_DEVICES - len(found):
            raise _bad(spec, f"one host has 1 to {MAX_DEVICES} devices")
        if memory_mb < 1:
            raise _bad(spec, "a device has at least 1 MB")
        if memory_mb > FIELDS["gpu_memory_mb"].maximum:
            raise _bad(spec, f"a device has at most {FIELDS['gpu_memory_mb'].maximum} MB; the unit is MB, not bytes")
        found += [(memory_mb, number if match[3] else None)] * count
    return found


def _bad(spec: str, rule: str) -> SettingsError:
    return SettingsError(
        f"allocator_devices (ALLOCATOR_DEVICES) is {spec!r}: {rule}. "
        "The form is sim:COUNTxMEMORY in MB, groups joined by commas: sim:2x24576,1x81920. "
        "A group joined by NVLink ends in :nvlink: sim:4x81920:nvlink"
    )
