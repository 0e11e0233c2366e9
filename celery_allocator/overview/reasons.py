"""Why something waits: what lacks where, computed from one snapshot.

A claim fits a device when its node has the cores and the RAM, the device has the GPU memory, and, for a task, its
worker has a free slot (see ``_place.lua``). Per device the first of these that lacks would not tell all, so each
dimension is counted by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from celery_allocator.model import ClusterState, DeviceState, Kind, NodeState, Requirements
from celery_allocator.overview.withholding import of_device, of_node

#: Sentences about what is withheld, at most.
_NAMED = 4
_WORDS = {
    "gpu_memory_mb": "GPU memory (MB)",
    "cpu_cores": "CPU cores",
    "ram_mb": "RAM (MB)",
    "slots": "worker slots",
    "gpu_count": "GPUs with so much free on one node",
}


@dataclass(frozen=True)
class Lack:
    """One dimension that lacks on ``devices`` devices: ``needed`` of it, and ``most_free`` on any of those."""

    dimension: str
    needed: int
    most_free: int
    devices: int


@dataclass(frozen=True)
class Reason:
    """``code``: ``room`` (what it needs lacks), ``no_device`` (none that could take it is open), ``stopped`` or
    ``paused`` (nothing is granted), ``cap`` (its tenant has reached a cap), ``kept`` (what room there is, is kept for
    the first in line), ``apart`` (it has room, and goes apart from others of its word), ``affinity`` (it has room, and
    waits for a while for a device where its affinity is loaded), ``behind`` (it would fit, and others are before it),
    or ``in_line`` (it would fit: it is granted next, or was just now).

    ``text``: a sentence for people.
    """

    code: str
    text: str
    lacks: tuple[Lack, ...] = ()


def why(requirements: Requirements, kind: Kind, cluster: ClusterState) -> Reason:
    """Why a claim of this shape is not granted at this instant."""
    if cluster.paused == "stopped":
        return Reason("stopped", "Nothing is granted: an operator has paused the pool.")
    if cluster.paused:
        return Reason("paused", "Nothing is granted yet: workers have still to report after a restart of the server.")
    open_to_it, found = _looked(requirements, kind, cluster)
    if not open_to_it:
        what = "GPU" if requirements.on_gpu else "device"
        where = f" where it may go ({', '.join(_bounds(requirements))})" if _bounds(requirements) else ""
        told = f"No {what}{where} that takes {'tasks' if kind is Kind.TASK else 'work'} is ready."
        return Reason("no_device", told + _taken_out(requirements, cluster))
    if not all(found):
        if requirements.anti_affinity:
            word = requirements.anti_affinity
            return Reason(
                "apart", f"There is room for it, on nodes where another {word} may be: it goes apart from these."
            )
        return Reason("in_line", "There is room for it now: it is granted next.")
    lacks = tuple(
        Lack(
            dimension,
            max(needed for needed, _ in (lack[dimension] for lack in found if dimension in lack)),
            max(free for _, free in (lack[dimension] for lack in found if dimension in lack)),
            sum(dimension in lack for lack in found),
        )
        for dimension in _WORDS
        if any(dimension in lack for lack in found)
    )
    text = _sentence(lacks, len(open_to_it)) + _taken_out(requirements, cluster)
    return Reason("room", " ".join([text, *_withheld(open_to_it, found)]), lacks)


def fitting(requirements: Requirements, kind: Kind, cluster: ClusterState) -> tuple[str, ...]:
    """The devices (node/device) where a claim of this shape has room now."""
    open_to_it, found = _looked(requirements, kind, cluster)
    return tuple(device.key for (_, device), lacks in zip(open_to_it, found, strict=True) if not lacks)


def _looked(
    requirements: Requirements, kind: Kind, cluster: ClusterState
) -> tuple[list[tuple[NodeState, DeviceState]], list[dict[str, tuple[int, int]]]]:
    """The devices that take such claims, and what lacks on each."""
    open_to_it = list(places(requirements, kind, cluster))
    found = [lacking(requirements, kind, node, device) for node, device in open_to_it]
    return open_to_it, _too_few(requirements, open_to_it, found) if requirements.gpu_count > 1 else found


def places(requirements: Requirements, kind: Kind, cluster: ClusterState) -> Iterable[tuple[NodeState, DeviceState]]:
    """Devices that take such claims at all."""
    for node in cluster.nodes:
        for device in node.devices:
            takes = device.is_gpu == requirements.on_gpu and may_go(requirements, node, device)
            ready = node.state == "ready" and device.state == "ready"
            if takes and ready and (kind is Kind.MANUAL or (device.worker and not device.closing)):
                yield node, device


def _taken_out(requirements: Requirements, cluster: ClusterState) -> str:
    """What would take such claims, and was taken out for a reason that somebody gave."""
    told = [
        f"{device.key} is {device.state} ({device.reason})"
        for device in cluster.devices
        if device.reason and device.is_gpu == requirements.on_gpu
    ]
    return f" Taken out: {', '.join(told)}." if told else ""


def lacking(requirements: Requirements, kind: Kind, node: NodeState, device: DeviceState) -> dict[str, tuple[int, int]]:
    """What lacks on one device: dimension → (needed, free)."""
    free = {"gpu_memory_mb": device.memory_free_mb} if requirements.on_gpu else {}
    free |= {"cpu_cores": len(node.cpu_cores_free), "ram_mb": node.ram_free_mb}
    if kind is Kind.TASK:
        free["slots"] = device.slots_free
    needed = {name: _needed(requirements, name, device) for name in free}
    return {name: (needed[name], amount) for name, amount in free.items() if amount < needed[name]}


def _too_few(
    requirements: Requirements, open_to_it: list[tuple[NodeState, DeviceState]], found: list[dict[str, tuple[int, int]]]
) -> list[dict[str, tuple[int, int]]]:
    """``found`` with what lacks where a node has too few GPUs that would do."""
    fitting = Counter(node.node for (node, _), lacks in zip(open_to_it, found, strict=True) if not lacks)
    return [
        lacks or _unless(fitting[node.node] >= requirements.gpu_count, requirements.gpu_count, fitting[node.node])
        for (node, _), lacks in zip(open_to_it, found, strict=True)
    ]


def _unless(enough: bool, needed: int, free: int) -> dict[str, tuple[int, int]]:
    return {} if enough else {"gpu_count": (needed, free)}


def _needed(requirements: Requirements, dimension: str, device: DeviceState) -> int:
    if dimension == "gpu_memory_mb":
        return requirements.gpu_memory_on(device.memory_mb)
    return 1 if dimension == "slots" else int(getattr(requirements, dimension))


def may_go(requirements: Requirements, node: NodeState, device: DeviceState) -> bool:
    """Whether it is one of the places that it may go to by what it says of them."""
    return (
        requirements.node in ("", node.node)
        and requirements.gpu_model.lower() in device.model.lower()
        and all(node.labels.get(name) == value for name, value in requirements.labels)
        and not (requirements.gpu_count > 1 and "_mig_" in device.device_id)
    )


def _bounds(requirements: Requirements) -> tuple[str, ...]:
    return Requirements(
        cpu_cores=1,
        exclusive=bool(requirements.gpu_model),
        gpu_model=requirements.gpu_model,
        node=requirements.node,
        labels=requirements.labels,
    ).besides[bool(requirements.gpu_model) :]


def _withheld(
    open_to_it: list[tuple[NodeState, DeviceState]], found: list[dict[str, tuple[int, int]]]
) -> Iterable[str]:
    """What is withheld where that is what lacks, of a few devices."""
    told: dict[str, None] = {}
    for (node, device), lacks in zip(open_to_it, found, strict=True):
        for name, withheld, sentences in (
            ("gpu_memory_mb", device.withheld_mb, of_device(device)),
            ("ram_mb", node.ram_withheld_mb, of_node(node)),
        ):
            needed, free = lacks.get(name, (0, 0))
            if free < needed <= free + withheld:
                told.update(dict.fromkeys(sentences))
    return islice(told, _NAMED)


def _sentence(lacks: tuple[Lack, ...], places: int) -> str:
    told = [
        f"{_WORDS[lack.dimension]} on {'all' if lack.devices == places else lack.devices} of {places} "
        f"({lack.needed} needed, {lack.most_free} free at most)"
        for lack in sorted(lacks, key=lambda lack: -lack.devices)
    ]
    return f"Lacks {', '.join(told)}."
