"""The table of nodes and devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from celery_allocator.overview import OTHER, Bar, DeviceView, NodeView, fault
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import Pieces, gauge
from celery_allocator.surfaces.terminal.columns import KEPT, Column, plain


@dataclass(frozen=True)
class Place:
    """A row of the devices: a node (``device`` is ``None``) or one of its devices. ``flat``: not below its node."""

    node: NodeView
    device: DeviceView | None = None
    flat: bool = False

    @property
    def key(self) -> str:
        """The name that commands take."""
        return self.node.node.node if self.device is None else self.device.device.key

    @property
    def state(self) -> str:
        """``ready``, ``cordoned``, ``draining`` or ``offline``."""
        return self.node.node.state if self.device is None else self.device.device.state


def _name(place: Place, _: float, width: int) -> Pieces:
    if place.device is None:
        return plain(place.node.node.node, "strong")
    mark: Pieces = ((f" {KEPT}", "kept"),) if place.device.kept is not None else ()
    if place.flat:
        return (*plain(words.end(place.key, width - 2 * len(mark))), *mark)
    return (("  ", "plain"), *plain(place.device.device.device_id), *mark)


def _state(place: Place, _: float, width: int) -> Pieces:
    broken = place.device is not None and fault(place.device.device) not in (None, OTHER)
    style = "bad" if broken else {"ready": "good", "offline": "bad"}.get(place.state, "warning")
    return plain(place.state, style)


def _memory(place: Place, _: float, width: int) -> Pieces:
    if place.device is not None and not place.device.device.is_gpu:
        return plain("no GPU memory", "dim")
    bar = place.node.ram if place.device is None else place.device.memory
    kind = "RAM" if place.device is None else "GPU"
    taken = bar.promised + bar.overused + bar.leftover + (bar.foreign or 0)
    return gauge(bar, f"{words.size(taken):>5}/{words.size(bar.capacity):>5} {kind}", width)


def _unknown(place: Place) -> Pieces:
    return plain("" if place.device is None else "-", "dim")


def _load(place: Place, _: float, width: int) -> Pieces:
    use = None if place.device is None else place.device.use
    if use is None or use.gpu_utilization is None:
        return _unknown(place)
    percent = round(use.gpu_utilization * 100)
    return gauge(Bar(100, min(percent, 100), percent), f"{percent:>3}%", width)


def _temperature(place: Place, _: float, width: int) -> Pieces:
    use = None if place.device is None else place.device.use
    if use is None or use.gpu_temperature_c is None:
        return _unknown(place)
    return plain(f"{use.gpu_temperature_c}°", "warning" if use.gpu_temperature_c >= 85 else "plain")


def _power(place: Place, _: float, width: int) -> Pieces:
    use = None if place.device is None else place.device.use
    return _unknown(place) if use is None or use.gpu_power_w is None else plain(f"{use.gpu_power_w:.0f} W")


def _cores(place: Place, _: float, width: int) -> Pieces:
    if place.device is not None:
        held = sum(len(allocation.cpu_cores) for allocation in place.device.held)
        return plain(str(held) if held else "-", "dim")
    cores = place.node.cores
    taken = sum(core.state != "free" for core in cores)
    return gauge(Bar(len(cores), taken, taken), f"{taken}/{len(cores)}", width)


def _slots(place: Place, _: float, width: int) -> Pieces:
    if place.device is None:
        return plain("")
    if place.device.device.worker is None:
        return plain("none", "dim")
    slots = place.device.slots
    return gauge(Bar(slots.capacity, slots.promised, slots.promised), f"{slots.promised}/{slots.capacity}", width)


def _model(place: Place, _: float, width: int) -> Pieces:
    return plain("" if place.device is None else place.device.device.model, "dim")


def _share(bar: Bar) -> float:
    return max(bar.promised, bar.used or 0) / bar.capacity if bar.capacity else -1.0


def _of_use(name: str) -> Callable[[Place], float]:
    def order(place: Place) -> float:
        value = None if place.device is None or place.device.use is None else getattr(place.device.use, name)
        return -1.0 if value is None else -float(value)

    return order


PLACES: tuple[Column[Place], ...] = (
    Column("NODE, DEVICE", 17, _name, lambda place: place.key, grow=1),
    Column("STATE", 8, _state, lambda place: (place.state, place.key)),
    Column(
        "MEMORY", 28, _memory, lambda place: -_share(place.device.memory if place.device else place.node.ram), grow=5
    ),
    Column("LOAD", 4, _load, _of_use("gpu_utilization"), grow=2),
    Column("TEMP", 4, _temperature, _of_use("gpu_temperature_c"), right=True),
    Column("POWER", 6, _power, _of_use("gpu_power_w"), right=True, since=100),
    Column(
        "CORES",
        7,
        _cores,
        lambda place: -sum(len(a.cpu_cores) for a in place.device.held) if place.device else 0,
        grow=2,
    ),
    Column("SLOTS", 5, _slots, lambda place: -place.device.slots.promised if place.device else 0, grow=1),
    Column("MODEL", 18, _model, lambda place: place.device.device.model if place.device else "", since=120),
)
