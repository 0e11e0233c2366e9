"""One amount of a device or a node, parted for drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """``capacity`` in MB (or slots), what is ``promised`` of it, and what was measured (``None``: it was not).

    ``used``: by the processes of our tasks and workers; where only the total is known (``foreign`` is ``None``), by all
    processes. ``foreign``: by others.
    """

    capacity: int
    promised: int
    used: int | None = None
    foreign: int | None = None

    @property
    def unused(self) -> int:
        """Promised and not used; all that is promised, where nothing was measured."""
        return max(0, self.promised - (self.used or 0))

    @property
    def overused(self) -> int:
        """Used beyond what is promised."""
        return max(0, (self.used or 0) - self.promised)

    @property
    def free(self) -> int:
        """Neither promised nor used by anybody."""
        return max(0, self.capacity - max(self.promised, self.used or 0) - (self.foreign or 0))

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data, with what follows from it."""
        return {
            "capacity": self.capacity,
            "promised": self.promised,
            "used": self.used,
            "foreign": self.foreign,
            "unused": self.unused,
            "overused": self.overused,
            "free": self.free,
        }
