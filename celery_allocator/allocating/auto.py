"""``gpu_memory_mb="auto"``: what a task asks for, from what its runs turned out to use.

Resolved once, when the task is submitted: what is placed is a number, as any other. Until enough runs were measured it
is a first guess that is rather too large: a run that waits longer is better than one that fails for want of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery_allocator.errors import RequirementsError
from celery_allocator.ledger import Capacity, Learned, Ledger
from celery_allocator.model import FIELDS, SIZE
from celery_allocator.settings import Settings

AUTO = "auto"
#: The requirements that may say so.
CAN_BE_AUTO = ("gpu_memory_mb", "ram_mb")
#: Share of the smallest GPU that a first run gets. Not all of it: a driver, or a display, may keep some for itself, and
#: what is asked for would then never be free.
_FIRST_SHARE = 0.9

#: From the name of a task and what it asks for, with ``auto`` in it perhaps, to numbers.
Resolve = Callable[[str, Mapping[str, Any]], dict[str, Any]]


def says_auto(asked: Mapping[str, Any]) -> bool:
    """Whether something of it is to be found out."""
    return any(asked.get(name) == AUTO for name in CAN_BE_AUTO)


def resolve(
    asked: Mapping[str, Any],
    ledger: Ledger,
    settings: Settings,
    task_name: str,
    host: Iterable[Capacity] = (),
) -> dict[str, Any]:
    """``asked`` with numbers where it says ``auto``; one round trip, and none if it does not.

    ``host``: devices that will be offered with it, should the ledger know none. Raises :class:`RequirementsError` where
    nothing is known to go by, and what the ledger raises.
    """
    if not says_auto(asked):
        return dict(asked)
    size = asked.get(SIZE)
    known = ledger.learned_of(task_name, size if isinstance(size, str) else "")
    devices = known.devices or tuple(host)
    resolved = dict(asked)
    for name in CAN_BE_AUTO:
        if asked.get(name) == AUTO:
            resolved[name] = _learned(known, name, devices) or _first(name, asked, devices, settings)
            if not resolved[name]:
                raise RequirementsError(name, AUTO, _unresolved(name, task_name))
    return resolved


def _learned(known: Learned, name: str, devices: Iterable[Capacity]) -> int | None:
    """As it is recommended, of its size where that is known; at most what the largest device has."""
    usage = known.usage(name)
    if usage is None or usage.suggested is None:
        return None
    return min(usage.suggested, max((getattr(device, name) for device in devices), default=usage.suggested))


def _first(name: str, asked: Mapping[str, Any], devices: Iterable[Capacity], settings: Settings) -> int | None:
    """Before that: as it is set, else a share of the smallest device; ``None`` where there is none to go by."""
    as_set: int | None = getattr(settings, f"auto_{name}")
    if as_set is not None:
        return as_set
    if name == "gpu_memory_mb":
        smallest = min((device.gpu_memory_mb for device in devices if device.gpu_memory_mb), default=0)
        return int(smallest * _FIRST_SHARE)
    cores = asked.get("cpu_cores", FIELDS["cpu_cores"].default)
    if isinstance(cores, bool) or not isinstance(cores, int) or cores < 0:
        return 1  # what is wrong with that is said when the requirements are made
    return min((_share(max(1, cores), device) for device in devices if device.ram_mb), default=0)


def _share(cores: int, device: Capacity) -> int:
    """Of its node's RAM as much as of its cores."""
    return max(1, int(device.ram_mb * min(1.0, cores / max(1, device.cpu_cores)) * _FIRST_SHARE))


def _unresolved(name: str, task_name: str) -> str:
    what = "GPU" if name == "gpu_memory_mb" else "node"
    return (
        f"no run of {task_name!r} has been measured yet, and no {what} is known to go by: start a worker, or say what "
        f"a first run gets (setting allocator_auto_{name}, in MB)"
    )
