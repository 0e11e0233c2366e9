"""What the plots show: hours over time by name, waits, the load of devices, how tasks of each name ended."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from celery_allocator.history.window import Window

#: Lengths of the buckets of time, in seconds, and how many there may be.
_SIZES = (60, 300, 900, 3600, 4 * 3600, 86400, 7 * 86400)
_BUCKETS = 64
_FIRST = datetime(1, 1, 1, tzinfo=timezone.utc)
#: Upper bounds of the classes of waits (seconds, included); the last class has none.
WAITS = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0)


@dataclass
class DeviceLoad:
    """Of each bucket: the share of a device's memory that was held, 0 to 1."""

    memory_mb: int
    shares: list[float]
    average: float = 0.0


@dataclass
class Series:
    """Adds up what passes. Buckets of time have one length and are aligned to it in UTC; the window cuts the outer."""

    window: Window
    #: Promised hours by name and bucket, in both units.
    gb_hours: dict[str, list[float]] = field(default_factory=dict)
    gpu_hours: dict[str, list[float]] = field(default_factory=dict)
    #: Waits by class.
    waits: list[int] = field(default_factory=lambda: [0] * (len(WAITS) + 1))
    #: How tasks of a name ended: well, wrong, neither.
    endings: dict[str, Counter[str]] = field(default_factory=dict)
    devices: dict[str, DeviceLoad] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fitting = [size for size in _SIZES if self.window.seconds / size <= _BUCKETS - 2]
        self.step_s = fitting[0] if fitting else _SIZES[-1] * -(-int(self.window.seconds) // (_SIZES[-1] * _BUCKETS))
        first = int(self.window.start_s // self.step_s) * self.step_s
        last = self.window.end_s
        self.starts_s = [first + i * self.step_s for i in range(max(1, -int(-(last - first) // self.step_s)))]

    def waited(self, wait_s: float) -> None:
        """An allocation waited so long."""
        self.waits[bisect.bisect_left(WAITS, wait_s)] += 1

    def ended(self, name: str, how: str) -> None:
        """A task of this name ended: "successes", "failures" or "others"."""
        self.endings.setdefault(name, Counter())[how] += 1

    def held(self, name: str, device: str, memory_mb: int | None, gpu_mb: int, start_s: float, end_s: float) -> None:
        """GPU memory was held, from and to moments inside of the window (seconds since the epoch)."""
        for bucket, length in self._parts(start_s, end_s):
            self._line(self.gb_hours, name)[bucket] += gpu_mb / 1024 * length / 3600
            if memory_mb:
                self._line(self.gpu_hours, name)[bucket] += gpu_mb / memory_mb * length / 3600
                self.device(device, memory_mb).shares[bucket] += gpu_mb * length

    def device(self, name: str, memory_mb: int) -> DeviceLoad:
        """The load of a device, nothing at first."""
        load = self.devices.get(name)
        if load is None:
            load = self.devices[name] = DeviceLoad(memory_mb, [0.0] * len(self.starts_s))
        return load

    def finish(self) -> Series:
        """Turn what was held on devices, until here in MB·s, into shares."""
        for load in self.devices.values():
            load.average = sum(load.shares) / (load.memory_mb * self.window.seconds)
            load.shares = [
                mb_s / (load.memory_mb * self._length(bucket)) if self._length(bucket) > 0 else 0.0
                for bucket, mb_s in enumerate(load.shares)
            ]
        return self

    def starts(self) -> list[datetime]:
        """When each bucket begins."""
        # A bucket that begins before the first of all years is cut there.
        first = _FIRST.timestamp()
        return [_FIRST + timedelta(seconds=max(start, first) - first) for start in self.starts_s]

    def as_dict(self) -> dict[str, Any]:
        """As the JSON shows it."""
        return {
            "step_s": self.step_s,
            "starts": [start.strftime("%Y-%m-%dT%H:%M:%SZ") for start in self.starts()],
            **{
                unit: {name: [round(v, 6) for v in values] for name, values in sorted(lines.items())}
                for unit, lines in (("gpu_hours", self.gpu_hours), ("gb_hours", self.gb_hours))
            },
            "wait_bounds_s": list(WAITS),
            "waits": self.waits,
            "endings": {name: dict(sorted(counted.items())) for name, counted in sorted(self.endings.items())},
            "devices": {
                name: {
                    "memory_mb": load.memory_mb,
                    "average": round(load.average, 6),
                    "shares": [round(share, 6) for share in load.shares],
                }
                for name, load in sorted(self.devices.items())
            },
        }

    def _line(self, lines: dict[str, list[float]], name: str) -> list[float]:
        line = lines.get(name)
        if line is None:
            line = lines[name] = [0.0] * len(self.starts_s)
        return line

    def _length(self, bucket: int) -> float:
        start = self.starts_s[bucket]
        return min(start + self.step_s, self.window.end_s) - max(start, self.window.start_s)

    def _parts(self, start_s: float, end_s: float) -> Iterator[tuple[int, float]]:
        """The buckets that a stretch touches, and for how many seconds each."""
        bucket = int((start_s - self.starts_s[0]) // self.step_s)
        while start_s < end_s and bucket < len(self.starts_s):
            upto = min(end_s, self.starts_s[bucket] + self.step_s)
            yield bucket, upto - start_s
            start_s, bucket = upto, bucket + 1
