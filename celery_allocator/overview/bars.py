"""One amount of a device or a node, parted for drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """``capacity`` in MB (or slots), what is ``promised`` of it, and what was measured (``None``: it was not).

    ``used``: by the processes of our tasks and workers; where only the total is known (``foreign`` is ``None``), by all
    processes. ``foreign``: by others. ``leftover``: of ``used``, by processes without a task; ``excess``: by tasks
    beyond their own claims, whatever others leave of theirs. ``withheld``: what the ledger gives to nobody for these.
    """

    capacity: int
    promised: int
    used: int | None = None
    foreign: int | None = None
    leftover: int = 0
    excess: int = 0
    withheld: int = 0

    @property
    def within(self) -> int:
        """Used by tasks within what is promised."""
        return max(0, self._by_tasks - self.overused)

    @property
    def unused(self) -> int:
        """Promised and not used; all that is promised, where nothing was measured."""
        return max(0, self.promised - self.within)

    @property
    def overused(self) -> int:
        """Used beyond what is promised."""
        return max(self.excess, self._by_tasks - self.promised, 0)

    @property
    def free(self) -> int:
        """Neither promised nor used by anybody, nor withheld."""
        taken = self.overused + self.leftover + (self.foreign or 0)
        return max(0, self.capacity - self.promised - max(taken, self.withheld))

    @property
    def _by_tasks(self) -> int:
        return max(0, (self.used or 0) - self.leftover)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data, with what follows from it."""
        return {
            "capacity": self.capacity,
            "promised": self.promised,
            "used": self.used,
            "foreign": self.foreign,
            "leftover": self.leftover,
            "withheld": self.withheld,
            "within": self.within,
            "unused": self.unused,
            "overused": self.overused,
            "free": self.free,
        }
