"""The pool as the event stream tells it: what there is, what is held where, and what waits, event by event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from celery_allocator.gate.evidence import Event, Evidence
from celery_allocator.gate.views import DeviceView, Holding, NodeView
from celery_allocator.history.window import utc
from celery_allocator.model import Shape

#: Events that change what an allocation holds or waits for.
ALLOCATION_EVENTS = (
    *(
        "delayed",
        "waiting",
        "granted",
        "reclaimed",
        "requeued",
        "withdrawn",
        "lost",
        "released",
        "cancelled",
        "expired",
    ),
    *("parked", "held", "unheld", "restored", "grown"),
)
#: Events that change what there is to be had.
POOL_EVENTS = (
    *("node", "node_lost", "worker", "closing", "left", "worker_lost", "cordoned", "draining", "uncordoned"),
    *("paused", "resumed"),
)
#: What is said where a replay is not possible.
LACKING = "events of this time are missing (see history_gaps)"
#: Events after which an allocation holds nothing and does not wait.
_ENDINGS = frozenset({"released", "cancelled", "expired", "parked"})


class Replay:
    """Apply events in the stream's order; between any two, the attributes are the pool as it was then."""

    def __init__(self, waits: Callable[[Event], bool] = lambda _: True) -> None:
        """``waits``: whether an allocation counts as waiting, judged by an event of it."""
        self._waits = waits
        self.nodes: dict[str, NodeView] = {}
        self.devices: dict[str, DeviceView] = {}
        self.held: dict[str, Holding] = {}
        #: Whether an operator has stopped all granting.
        self.stopped = False
        #: How many allocations of each shape wait and may be granted.
        self.line: Counter[Shape] = Counter()
        #: Nodes of which something else is held than when this was last emptied.
        self.touched: set[str] = set()
        self._waiting: dict[str, Shape] = {}
        self._shapes: dict[str, Shape] = {}
        self._granted_cores: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._suspended: dict[str, bool] = {}

    def apply(self, event: Event) -> None:
        """One event more."""
        handle = getattr(self, f"_on_{event.event}", None)
        if handle is not None:
            handle(event)
        elif event.event in _ENDINGS:
            self._end(event.object_id)

    def forget_held(self) -> None:
        """Begin anew with nothing held."""
        for allocation in list(self.held):
            self._give_back(allocation)

    # --- allocations

    def _on_delayed(self, event: Event) -> None:
        self._learn(event)

    def _on_waiting(self, event: Event) -> None:
        self._learn(event)
        self._wait(event)

    def _on_granted(self, event: Event) -> None:
        self._learn(event)
        self._granted_cores[event.object_id] = (event.text("token"), _core_ids(event.text("cores")))
        self._take(event)

    def _on_reclaimed(self, event: Event) -> None:
        self._take(event)

    def _on_requeued(self, event: Event) -> None:
        self._give_back(event.object_id)
        self._wait(event)

    _on_withdrawn = _on_requeued

    def _on_grown(self, event: Event) -> None:
        """In line again with a larger claim."""
        self._give_back(event.object_id)
        self._learn(event)
        self._wait(event)

    def _on_lost(self, event: Event) -> None:
        if event.text("again") == "1":
            self._on_requeued(event)
        else:
            self._end(event.object_id)

    def _on_restored(self, event: Event) -> None:
        """What had ended is back; where it has its old place again, its grant follows."""
        if event.text("to") == "on_hold":
            self._suspended[event.object_id] = True
        elif event.text("to") != "delayed":
            self._wait(event)

    def _on_held(self, event: Event) -> None:
        self._suspended[event.object_id] = self._leave_line(event.object_id)

    def _on_unheld(self, event: Event) -> None:
        if self._suspended.pop(event.object_id, False):
            self._wait(event)

    def _learn(self, event: Event) -> None:
        shape = Shape.parse(event.text("shape"))
        if shape is not None:
            self._shapes[event.object_id] = shape

    def _shape(self, event: Event) -> Shape | None:
        """What its allocation asks for: as its events said, else as its row does."""
        known = self._shapes.get(event.object_id)
        if known is None and (known := Shape.parse(event.shape)) is not None:
            self._shapes[event.object_id] = known
        return known

    def _wait(self, event: Event) -> None:
        allocation, shape = event.object_id, self._shape(event)
        self._leave_line(allocation)
        if allocation in self._suspended:
            self._suspended[allocation] = True
        elif shape is not None and self._waits(event):
            self._waiting[allocation] = shape
            self.line[shape] += 1

    def _leave_line(self, allocation: str) -> bool:
        shape = self._waiting.pop(allocation, None)
        if shape is not None:
            self.line[shape] -= 1
            if not self.line[shape]:
                del self.line[shape]
        return shape is not None

    def _take(self, event: Event) -> None:
        allocation, device = event.object_id, event.text("device")
        self._leave_line(allocation)
        shape = self._shape(event)
        if shape is None or not device:
            return
        token, cores = self._granted_cores.get(allocation, ("", ()))
        self._give_back(allocation)
        also = tuple(event.text("devices").split()[1:])
        holding = Holding(device, shape, cores if token == event.text("token") else (), also)
        self.held[allocation] = holding
        self._count(holding, 1)

    def _give_back(self, allocation: str) -> None:
        holding = self.held.pop(allocation, None)
        if holding is not None:
            self._count(holding, -1)

    def _end(self, allocation: str) -> None:
        self._give_back(allocation)
        self._leave_line(allocation)
        self._shapes.pop(allocation, None)
        self._granted_cores.pop(allocation, None)
        self._suspended.pop(allocation, None)

    def _count(self, holding: Holding, sign: int) -> None:
        device, node = self.device(holding.device), self.node(holding.node)
        for key in (holding.device, *holding.also):
            self.device(key).memory_held += sign * holding.shape.gpu_memory_mb
        device.tasks += sign * holding.shape.slot
        node.ram_held += sign * holding.shape.ram_mb
        node.cores_taken += sign * holding.shape.cpu_cores
        self.touched.add(holding.node)
        for core in holding.cores:
            node.cores_held[core] += sign
            if not node.cores_held[core]:
                del node.cores_held[core]

    # --- nodes, devices, workers

    def node(self, name: str) -> NodeView:
        """A node, known or not."""
        return self.nodes.setdefault(name, NodeView())

    def device(self, key: str) -> DeviceView:
        """A device (``node/device``), known or not. A new one has the state of its node."""
        if key not in self.devices:
            self.devices[key] = DeviceView(state=self.node(key.partition("/")[0]).state)
        return self.devices[key]

    def _on_node(self, event: Event) -> None:
        name = event.object_id
        node = self.node(name)
        node.cores, node.ram_mb = event.number("cores"), event.number("ram_mb")
        listed = {f"{name}/cpu": 0}
        for word in event.text("gpu_memory_mb").split():
            device, _, size = word.rpartition(":")
            listed[f"{name}/{device}"] = int(size)
        for key, memory in listed.items():
            told = self.device(key)
            told.memory_mb, told.live = memory, True
        for key in self._of_node(name):
            if key not in listed and not self.devices[key].worker:
                self.devices[key].live = False

    def _on_node_lost(self, event: Event) -> None:
        for key in self._of_node(event.object_id):
            self.devices[key].live = False

    def _on_worker(self, event: Event) -> None:
        device = self.device(event.text("device"))
        device.worker, device.slots, device.open, device.live = event.object_id, event.number("slots"), True, True

    def _on_closing(self, event: Event) -> None:
        self.device(event.text("device")).open = False

    def _on_left(self, event: Event) -> None:
        served = self.devices.get(event.text("device"))
        if served is not None and served.worker == event.object_id:
            served.worker, served.open, served.slots = "", False, 0

    _on_worker_lost = _on_left

    def _on_cordoned(self, event: Event) -> None:
        target, state = event.object_id, "ready" if event.event == "uncordoned" else event.event
        if "/" in target:
            self.device(target).state = state
            return
        self.node(target).state = state
        for key in self._of_node(target):
            self.devices[key].state = state

    _on_draining = _on_cordoned
    _on_uncordoned = _on_cordoned

    def _on_paused(self, event: Event) -> None:
        # Without "by" it is the ledger's own, after a change of its server: that one is idle time.
        self.stopped = self.stopped or bool(event.text("by"))

    def _on_resumed(self, event: Event) -> None:
        self.stopped = self.stopped and not event.text("by")

    def _of_node(self, name: str) -> list[str]:
        return [key for key in self.devices if key.partition("/")[0] == name]


def _core_ids(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(",")) if text else ()


def seed(replay: Replay, evidence: Evidence) -> bool:
    """Bring a replay to the start of the window; False where the history lacks events that this would need."""
    start = evidence.window.start
    earliest, alive = start, list[str]()
    for row in evidence.records.alive(("allocation_id", "submitted_at"), start):
        earliest = min(earliest, utc(row.submitted_at))
        alive.append(row.allocation_id)
    if evidence.gaps(earliest):
        return False
    for event in evidence.records.events(POOL_EVENTS, start=None, end=start):
        replay.apply(event)
    for event in evidence.records.events(ALLOCATION_EVENTS, start=None, end=start, of=alive):
        replay.apply(event)
    return True
