"""Simulated GPUs: devices that exist in the ledger only, for trying things out and for tests."""

from __future__ import annotations

import re

from celery_allocator.errors import SettingsError
from celery_allocator.model import FIELDS, DeviceInventory

PREFIX = "sim:"
MODEL = "Simulated GPU"

#: More than any host carries; a larger count is a typing mistake.
MAX_DEVICES = 1024

_GROUP = re.compile(r"(\d{1,9})x(\d{1,15})", re.ASCII)


def devices(spec: str, node: str) -> tuple[DeviceInventory, ...]:
    """The devices of ``spec`` on ``node``: ``sim:2x24576`` is two of 24576 MB; groups are joined by commas.

    UUIDs are made from the node and the index, so that they are the same at every start.
    Raises :class:`SettingsError` naming the value and the form it must have.
    """
    sizes_mb: list[int] = []
    for group in spec.strip()[len(PREFIX) :].split(","):
        match = _GROUP.fullmatch(group.strip().lower())
        if match is None:
            raise _bad(spec, f"{group.strip()!r} is not COUNTxMEMORY")
        count, memory_mb = int(match[1]), int(match[2])
        if not 1 <= count <= MAX_DEVICES - len(sizes_mb):
            raise _bad(spec, f"one host has 1 to {MAX_DEVICES} devices")
        if memory_mb < 1:
            raise _bad(spec, "a device has at least 1 MB")
        if memory_mb > FIELDS["gpu_memory_mb"].maximum:
            raise _bad(spec, f"a device has at most {FIELDS['gpu_memory_mb'].maximum} MB; the unit is MB, not bytes")
        sizes_mb += [memory_mb] * count
    return tuple(
        DeviceInventory(
            device_id=f"gpu_{index}",
            index=index,
            uuid=f"GPU-sim-{node}-{index}",
            model=MODEL,
            memory_mb=memory_mb,
            simulated=True,
        )
        for index, memory_mb in enumerate(sizes_mb)
    )


def _bad(spec: str, rule: str) -> SettingsError:
    return SettingsError(
        f"allocator_devices (ALLOCATOR_DEVICES) is {spec!r}: {rule}. "
        "The form is sim:COUNTxMEMORY in MB, groups joined by commas: sim:2x24576,1x81920"
    )
