"""What is wrong with a device that was taken out, in a word for those who count."""

from __future__ import annotations

import re

from celery_allocator.model import DeviceState

#: Kinds of faults, each with what its reason says (see ``plugin/health.py``); the first that is found counts.
_SAYS = (
    ("lost", re.compile(r"the GPU is lost")),
    ("unreadable", re.compile(r"the GPU cannot be read")),
    ("xid", re.compile(r"Xid \d+:")),
    ("memory", re.compile(r"bad memory|uncorrectable memory error")),
    ("reset", re.compile(r"the driver asks for: ")),
)
#: Closed by an operator, or for a reason that no driver has told.
OTHER = "other"
FAULTS = (*(name for name, _ in _SAYS), OTHER)
_CLOSED = ("cordoned", "draining")


def fault(device: DeviceState) -> str | None:
    """Why a device is cordoned or draining, as one of :data:`FAULTS`; ``None`` if it is not."""
    if device.state not in _CLOSED:
        return None
    return next((name for name, says in _SAYS if says.search(device.reason)), OTHER)
