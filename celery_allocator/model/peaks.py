"""What one run of a task used at most. ``None``: not told; never 0 for that."""

from __future__ import annotations

from dataclasses import dataclass

#: Beyond any machine: a figure as large as this is none.
_LARGEST = 2**53


@dataclass(frozen=True)
class Peaks:
    """The most that one run used: GPU memory of one device and RAM in MB; ``cpu_cores``: how many cores it kept busy.

    ``cpu_cores`` is its CPU time over its run time, so a mean and no peak, and at most the cores that it is pinned to.
    """

    gpu_memory_mb: int | None = None
    ram_mb: int | None = None
    cpu_cores: float | None = None

    def to_wire(self) -> str:
        """As the scripts take it: GPU MB, RAM MB and thousandths of a core with colons between; empty if not known."""
        milli = None if self.cpu_cores is None else round(self.cpu_cores * 1000)
        told = (self.gpu_memory_mb, self.ram_mb, milli)
        if all(amount is None for amount in told):
            return ""
        return ":".join("" if amount is None or not 0 <= amount < _LARGEST else str(amount) for amount in told)
