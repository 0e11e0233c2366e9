"""Rules about what stood idle while tasks waited, recomputed from the event stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from celery_allocator.gate.evidence import Event, Evidence
from celery_allocator.gate.registry import Measurement, rule
from celery_allocator.gate.replay import ALLOCATION_EVENTS, LACKING, POOL_EVENTS, Replay, seed
from celery_allocator.model import CPU_DEVICE, Shape


@rule("idle_gap", unit="s")
def idle_gap(evidence: Evidence) -> Measurement:
    """Device-seconds of the window in which a device stood with room for a task that waited.

    A device counts from the moment at which it is ready (on a live node, not cordoned, draining or paused, served by
    a worker that is not closing) and a task waits whose GPU memory, cores, RAM and slot are all free there, until
    that is so no more. Two such devices count twice. What is granted and has not started holds its room. Filters
    choose the tasks and the devices. The ledger grants what fits in the same step that frees it, so anything above 0
    has a cause: granting was paused (a change of the server), or something is wrong. Samples are the events that were
    looked at.
    """
    clock = _idle(evidence)
    if clock is None:
        return Measurement(None, 0, unknown=LACKING)
    return Measurement(sum(clock.idle.values()), clock.seen, clock.told)


@rule("idle_share", unit="ratio")
def idle_share(evidence: Evidence) -> Measurement:
    """`idle_gap` as a share of the device-seconds of the window in which devices were ready."""
    clock = _idle(evidence)
    if clock is None:
        return Measurement(None, 0, unknown=LACKING)
    ready = sum(clock.ready.values())
    return Measurement(sum(clock.idle.values()) / ready if ready else None, clock.seen, clock.told)


def _idle(evidence: Evidence) -> _Clock | None:
    replay = Replay(waits=lambda e: evidence.matches(task=e.task_name or e.text("name"), tenant=e.tenant))
    if not seed(replay, evidence):
        return None
    clock = _Clock(evidence, replay)
    for event in evidence.records.events(
        (*ALLOCATION_EVENTS, *POOL_EVENTS), start=evidence.window.start, end=evidence.window.end
    ):
        replay.apply(event)
        clock.look(event)
    clock.stop(evidence.window.end_s)
    return clock


class _Clock:
    """Adds up, device by device, the seconds of being ready and of being idle."""

    def __init__(self, evidence: Evidence, replay: Replay) -> None:
        self._evidence, self._replay = evidence, replay
        self.idle: dict[str, float] = defaultdict(float)
        self.ready: dict[str, float] = defaultdict(float)
        self.seen = 0
        self._idle_since: dict[str, float] = {}
        self._ready_since: dict[str, float] = {}
        self._shapes = frozenset(replay.line)
        self._see(evidence.window.start_s, list(replay.devices))

    @property
    def told(self) -> tuple[str, ...]:
        """The devices that stood idle longest."""
        longest = sorted(self.idle.items(), key=lambda item: -item[1])[:5]
        return tuple(f"{device}: {seconds:.1f} s" for device, seconds in longest if seconds > 0)

    def look(self, event: Event) -> None:
        """After an event."""
        self.seen += 1
        shapes, touched = frozenset(self._replay.line), self._replay.touched
        devices: Iterable[str] = self._replay.devices
        if shapes == self._shapes and event.event not in POOL_EVENTS:
            devices = [key for key in devices if key.partition("/")[0] in touched] if touched else ()
        self._shapes = shapes
        self._see(event.at.timestamp(), list(devices))
        touched.clear()

    def stop(self, at: float) -> None:
        """The window is over."""
        for since, total in ((self._idle_since, self.idle), (self._ready_since, self.ready)):
            for device, begun in since.items():
                total[device] += max(0.0, at - begun)
            since.clear()

    def _see(self, at: float, devices: Iterable[str]) -> None:
        for device in devices:
            ready = (
                not self._replay.stopped
                and self._replay.devices[device].serves
                and self._evidence.matches(device=device)
            )
            self._switch(self._ready_since, self.ready, device, at, on=ready)
            idle = ready and any(self._has_room(device, shape) for shape in self._shapes)
            self._switch(self._idle_since, self.idle, device, at, on=idle)

    @staticmethod
    def _switch(since: dict[str, float], total: dict[str, float], device: str, at: float, *, on: bool) -> None:
        if on:
            since.setdefault(device, at)
        elif device in since:
            total[device] += max(0.0, at - since.pop(device))

    def _has_room(self, key: str, shape: Shape) -> bool:
        """Whether a task of that shape could be granted there. What no event told of counts as none."""
        name, _, device_id = key.partition("/")
        device, node = self._replay.devices[key], self._replay.node(name)
        return (
            shape.slot
            and not shape.bound  # whether it may go there is told nowhere
            and (device_id == CPU_DEVICE) != shape.on_gpu
            and (device.slots or 0) > device.tasks
            and (device.memory_mb or 0) - device.memory_held >= shape.gpu_memory_on(device.memory_mb or 0)
            and (node.cores or 0) - node.cores_taken >= shape.cpu_cores
            and (node.ram_mb or 0) - node.ram_held >= shape.ram_mb
        )
