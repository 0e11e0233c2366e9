"""The rule about what was held, recomputed from the event stream."""

from __future__ import annotations

from celery_allocator.gate.evidence import Event, Evidence
from celery_allocator.gate.registry import Measurement, rule
from celery_allocator.gate.replay import ALLOCATION_EVENTS, LACKING, POOL_EVENTS, Replay, seed
from celery_allocator.gate.views import Holding

_GRANTS = ("granted", "reclaimed")


@rule("oversubscription", unit="count", filters=("device",))
def oversubscription(evidence: Evidence) -> Measurement:
    """Grants of the window that took more than there was: of GPU memory, slots, RAM, or a core that somebody held.

    What is held is recomputed from every grant and give-back in the event stream, beginning with what was held at the
    window's start. A sum can exceed what there is in two ways: by a grant, which is counted here, or because a node
    came back with less than it had, which is not. When the ledger changed its server (`epoch`), events may have been
    lost with the old one: there the recount begins anew. Where events are missing, nothing is said. Samples are the
    window's grants.
    """
    replay = Replay()
    if not seed(replay, evidence):
        return Measurement(None, 0, unknown=LACKING)
    counted, broken, unknown = 0, list[str](), set[str]()
    for event in evidence.records.events(
        (*ALLOCATION_EVENTS, *POOL_EVENTS, "epoch"), start=evidence.window.start, end=evidence.window.end
    ):
        if event.event == "epoch":
            replay.forget_held()
        replay.apply(event)
        holding = replay.held.get(event.object_id) if event.event in _GRANTS else None
        if holding is not None and evidence.matches(device=holding.device):
            counted += 1
            unknown |= _unknown(replay, holding)
            if excess := _excess(replay, holding, event):
                broken.append(f"{event.event} {event.object_id} on {holding.device}: {excess}")
    details = [*broken[:5], *(f"not known, so not checked: {what}" for what in sorted(unknown)[:5])]
    return Measurement(float(len(broken)), counted, tuple(details))


def _excess(replay: Replay, holding: Holding, event: Event) -> str:
    """What the newest grant took that was not there, in words; empty if nothing."""
    device, node = replay.devices[holding.device], replay.nodes[holding.node]
    wrong = []
    for key in (holding.device, *holding.also):
        gpu, of = replay.devices[key], f" of {key}" if holding.also else ""
        if gpu.memory_mb is not None and gpu.memory_held > gpu.memory_mb and holding.shape.gpu_memory_mb:
            wrong.append(f"{gpu.memory_held} MB of {gpu.memory_mb} MB{of} held")
    if node.ram_mb is not None and node.ram_held > node.ram_mb and holding.shape.ram_mb:
        wrong.append(f"{node.ram_held} MB of {node.ram_mb} MB RAM held")
    if twice := [core for core in holding.cores if node.cores_held[core] > 1]:
        wrong.append(f"cores {', '.join(str(core) for core in twice)} held twice")
    elif node.cores is not None and len(node.cores_held) > node.cores and holding.cores:
        wrong.append(f"{len(node.cores_held)} of {node.cores} cores held")
    # A worker that comes back to what it runs may run more than its slots.
    if event.event == "granted" and holding.shape.slot and device.slots is not None and device.tasks > device.slots:
        wrong.append(f"{device.tasks} tasks in {device.slots} slots")
    return ", ".join(wrong)


def _unknown(replay: Replay, holding: Holding) -> set[str]:
    """What no event told of the place of a grant."""
    device, node = replay.devices[holding.device], replay.nodes[holding.node]
    unknown = set()
    if device.memory_mb is None and holding.shape.gpu_memory_mb:
        unknown.add(f"memory of {holding.device}")
    if node.ram_mb is None:
        unknown.add(f"RAM and cores of {holding.node}")
    return unknown
