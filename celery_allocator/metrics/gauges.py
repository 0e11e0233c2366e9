"""From one look to the values of gauges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import metadata

from celery_allocator.metrics import fairness
from celery_allocator.metrics.looking import Look
from celery_allocator.metrics.overusing import overuse
from celery_allocator.metrics.recorded import Recorded
from celery_allocator.metrics.table import METRICS
from celery_allocator.metrics.value import OTHER, Value
from celery_allocator.model import Shape, Withheld
from celery_allocator.model.requirements import WHOLE
from celery_allocator.overview import FAULTS, DeviceView, NodeView, fault

#: Shapes that have a series of their own.
SHAPES = 20
_MB = 2**20
_STATES = ("ready", "cordoned", "draining", "offline")
_PAUSES = ("stopped", "paused")


def about(pool: str, *, up: bool) -> Iterator[Value]:
    """What is told whatever the ledger does."""
    yield Value("up", (), float(up))
    yield Value("info", (_version(), pool), 1)


@cache
def _version() -> str:
    return metadata.version("celery-allocator")


def gauges(look: Look, recorded: Recorded | None) -> Iterator[Value]:
    """Every gauge of a look."""
    cluster, line = look.overview.cluster, look.line
    for node in look.overview.nodes:
        yield from _node(node)
        yield Value("workers", (node.node.node,), sum(
            worker.node == node.node.node and worker.lease_left_s > 0 for worker in cluster.workers
        ))  # fmt: skip
        for device in node.devices:
            yield from _device(device)
    for place, excesses in overuse(look.overview).items():
        yield Value("overused_tasks", place, len(excesses))
        yield Value("overuse_bytes", place, sum(excesses) * _MB)
    for state in ("delayed", "on_hold", "waiting", "granted", "running"):
        yield Value("allocations", (state,), getattr(cluster, state))
    yield from _waiting(line.waiting, dict(line.shapes))
    yield Value("oldest_waiting_age_seconds", (), 0 if line.since is None else max(0.0, line.at - line.since))
    yield from fairness.tenants(look.tenants)
    yield from fairness.reservation(look.reservation, line.at)
    yield from fairness.dates(look.accuracy)
    for reason in _PAUSES:
        yield Value("granting_paused", (reason,), float(cluster.paused == reason))
    if recorded is not None:
        yield Value("recorder_lag_seconds", (), recorded.lag_s)


def _node(view: NodeView) -> Iterator[Value]:
    node, ram = view.node, view.ram
    own = (node.node,)
    yield Value("cpu_cores_capacity", own, len(node.cpu_cores))
    yield Value("cpu_cores_allocated", own, len(node.cpu_cores) - len(node.cpu_cores_free))
    yield Value("ram_capacity_bytes", own, ram.capacity * _MB)
    yield Value("ram_allocated_bytes", own, ram.promised * _MB)
    for why, amount in _parts(node.ram_withheld):
        if why != "leftover":  # of RAM it is not withheld
            yield Value("ram_withheld_bytes", (node.node, why), amount * _MB)
    if ram.used is not None:
        yield Value("ram_used_bytes", own, ram.used * _MB)
    if ram.foreign is not None:
        yield Value("ram_foreign_bytes", own, ram.foreign * _MB)


def _device(view: DeviceView) -> Iterator[Value]:
    device, memory = view.device, view.memory
    own = (device.node, device.device_id, device.uuid)
    for state in _STATES:
        yield Value("device_state", (*own, state), float(device.state == state))
    closed = fault(device)
    for name in FAULTS:
        yield Value("device_closed", (*own, name), float(name == closed))
    yield Value("worker_slots_capacity", (*own, device.queue), view.slots.capacity)
    yield Value("worker_slots_allocated", (*own, device.queue), view.slots.promised)
    if not device.is_gpu:
        return
    yield Value("gpu_memory_capacity_bytes", own, memory.capacity * _MB)
    yield Value("gpu_memory_allocated_bytes", own, memory.promised * _MB)
    for why, amount in _parts(device.withheld):
        yield Value("gpu_memory_withheld_bytes", (*own, why), amount * _MB)
    yield Value("gpu_process_ids_hidden", own, float(device.withheld.pids_hidden))
    if memory.used is not None:
        yield Value("gpu_memory_used_bytes", own, memory.used * _MB)
    if memory.foreign is not None:
        yield Value("gpu_memory_foreign_bytes", own, memory.foreign * _MB)
    if view.use is not None and view.use.gpu_utilization is not None:
        yield Value("gpu_utilization_ratio", own, view.use.gpu_utilization)


def _parts(withheld: Withheld) -> tuple[tuple[str, int], ...]:
    """What is withheld, in MB by why."""
    return ("foreign", withheld.foreign_mb), ("leftover", withheld.leftover_mb), ("overuse", withheld.overuse_mb)


def _waiting(total: int, shapes: dict[Shape, int]) -> Iterator[Value]:
    """The largest groups; ties by what they ask for, so that the same ones have a series at each scrape."""
    groups: Counter[tuple[str, ...]] = Counter()
    for shape, count in shapes.items():
        # Of several GPUs, what it wants of all of them.
        memory, share = shape.gpu_memory_mb * shape.gpu_count, shape.share * shape.gpu_count / WHOLE
        groups[str(memory), f"{share:g}", str(shape.cpu_cores), str(shape.ram_mb), shape.kind.value] += count
    largest = sorted(groups, key=lambda asked: (-groups[asked], asked))[:SHAPES]
    for asked in largest:
        yield Value("waiting_by_shape", asked, groups[asked])
    rest = total - sum(groups[asked] for asked in largest)
    yield Value("waiting_by_shape", (OTHER,) * len(METRICS["waiting_by_shape"].labels), max(0, rest))
