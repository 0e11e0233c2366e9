"""What tasks say they held, and when; and whether that could have been true on one machine.

Written by the tasks themselves while they hold it, on the one monotonic clock of the host: nothing of the ledger's own
book-keeping is believed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One run: what it held from ``start`` to ``end`` (seconds of the monotonic clock). Sizes in MB."""

    allocation_id: str
    token: int
    node: str
    device: str
    gpu_memory_mb: int
    ram_mb: int
    cores: tuple[int, ...]
    start: float
    end: float
    pid: int

    def to_json(self) -> str:
        """As a line of a JSONL file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The inverse of :meth:`to_json`."""
        data = json.loads(line)
        return cls(**{**data, "cores": tuple(data["cores"])})


@dataclass(frozen=True)
class Capacity:
    """What the host has: core ids, RAM, and each device's memory (0: the CPU device) and slots."""

    cores: frozenset[int]
    ram_mb: int
    memory_mb: Mapping[str, int]
    slots: Mapping[str, int]


def read(path: Path) -> list[Record]:
    """Records from a JSONL file."""
    return [Record.from_json(line) for line in path.read_text().splitlines()]


def conflicts(records: Iterable[Record], capacity: Capacity) -> list[str]:
    """Every instant at which more was held than there is, as a sentence. A run holds until just before its ``end``."""
    records = list(records)
    found = [f"{r.allocation_id} ends before it starts" for r in records if r.end < r.start]
    runs = Counter((r.allocation_id, r.token) for r in records)
    found += [f"{allocation} ran {n} times with token {token}" for (allocation, token), n in runs.items() if n > 1]
    # At one instant, what ends goes before what starts; what ends as it starts holds nothing.
    possible = [r for r in records if r.end > r.start]
    instants = sorted([(r.start, 1, r) for r in possible] + [(r.end, 0, r) for r in possible], key=lambda i: i[:2])
    held: list[Record] = []
    for at, starts, record in instants:
        if starts:
            held.append(record)
            found += [f"at {at:.6f}: {problem}" for problem in _too_much(held, record, capacity)]
        else:
            held.remove(record)
    return found


def most_at_once(records: Sequence[Record]) -> dict[str, int]:
    """The largest number of runs at one instant, per device: a test wants to see that there was contention."""
    most: dict[str, int] = defaultdict(int)
    for record in records:
        together = sum(r.device == record.device and r.start <= record.start < r.end for r in records)
        most[record.device] = max(most[record.device], together)
    return dict(most)


def _too_much(held: list[Record], newest: Record, capacity: Capacity) -> list[str]:
    found = [f"core {core} does not exist" for core in set(newest.cores) - capacity.cores]
    found += [
        f"core {core} is held by {other.allocation_id} and {newest.allocation_id}"
        for other in held
        if other is not newest
        for core in set(other.cores) & set(newest.cores)
    ]
    here = [r for r in held if r.device == newest.device]
    for what, used, there in (
        ("RAM", sum(r.ram_mb for r in held), capacity.ram_mb),
        (f"memory of {newest.device}", sum(r.gpu_memory_mb for r in here), capacity.memory_mb[newest.device]),
        (f"slots of {newest.device}", len(here), capacity.slots[newest.device]),
    ):
        if used > there:
            found.append(f"{what}: {used} held, {there} there")
    return found
