"""Values of a replay: what an allocation asks for and holds, what a node or device has and what is held of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from celery_allocator.model import Shape


@dataclass(frozen=True)
class Holding:
    """What one grant took."""

    device: str
    shape: Shape
    cores: tuple[int, ...]
    #: The other GPUs of one on several.
    also: tuple[str, ...] = ()

    @property
    def node(self) -> str:
        """Name of its node."""
        return self.device.partition("/")[0]


@dataclass
class NodeView:
    """One node: what it has (``None`` where no event told) and what is held of it."""

    cores: int | None = None
    ram_mb: int | None = None
    state: str = "ready"
    ram_held: int = 0
    #: How often each core id is held.
    cores_held: Counter[int] = field(default_factory=Counter)
    #: How many cores are held, whether or not their ids are known.
    cores_taken: int = 0


@dataclass
class DeviceView:
    """One device: what it has (``None`` where no event told) and what is held of it."""

    memory_mb: int | None = None
    slots: int | None = None
    worker: str = ""
    open: bool = False
    live: bool = False
    state: str = "ready"
    memory_held: int = 0
    tasks: int = 0

    @property
    def serves(self) -> bool:
        """Whether tasks may be granted on it."""
        return self.live and self.state == "ready" and bool(self.worker) and self.open
