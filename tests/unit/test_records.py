"""The checker of the capacity test sees what it is there to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.records import Capacity, Record, conflicts, most_at_once, read

CAPACITY = Capacity(
    frozenset({0, 1, 2, 3}), 1000, {"gpu_0": 800, "gpu_1": 800, "cpu": 0}, {"gpu_0": 2, "gpu_1": 1, "cpu": 2}
)
FIRST = Record("a", 1, "host", "gpu_0", 400, 500, (0, 1), 10.0, 20.0, 7)


def test_what_fits_is_fine() -> None:
    """Side by side, one after the other in the same instant, and on another device."""
    beside = replace(FIRST, allocation_id="b", token=2, cores=(2,), start=12.0, end=15.0)
    after = replace(FIRST, allocation_id="c", token=3, gpu_memory_mb=800, ram_mb=1000, start=20.0, end=21.0)
    elsewhere = replace(FIRST, allocation_id="d", token=4, device="gpu_1", gpu_memory_mb=800, ram_mb=0, cores=(3,))
    again = replace(FIRST, token=5, start=30.0, end=31.0)
    assert conflicts([FIRST, after, beside, elsewhere, again], CAPACITY) == []
    assert most_at_once([FIRST, after, beside, elsewhere, again]) == {"gpu_0": 2, "gpu_1": 1}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"cores": (1, 2)}, "core 1 is held by a and b"),
        ({"device": "cpu", "gpu_memory_mb": 0, "cores": (0,)}, "core 0 is held by a and b"),
        ({"cores": (9,)}, "core 9 does not exist"),
        ({"gpu_memory_mb": 401}, "memory of gpu_0: 801 held, 800 there"),
        ({"ram_mb": 501}, "RAM: 1001 held, 1000 there"),
        ({"device": "gpu_1", "ram_mb": 501}, "RAM: 1001 held, 1000 there"),
        ({"start": 10.0, "end": 10.001, "cores": (0,)}, "core 0 is held by"),
        ({"start": 5.0, "end": 10.001, "cores": (0,)}, "core 0 is held by b and a"),
        ({"allocation_id": "a", "token": 1, "start": 30.0, "end": 31.0}, "a ran 2 times with token 1"),
        ({"end": 11.0}, "b ends before it starts"),
    ],
)
def test_what_does_not_fit_is_seen(change: dict[str, object], problem: str) -> None:
    """Each dimension, each way in which two runs can overlap."""
    other = replace(FIRST, allocation_id="b", token=2, cores=(2,), start=12.0, end=15.0)
    found = conflicts([FIRST, replace(other, **change)], CAPACITY)
    assert found, change
    assert any(problem in text for text in found), found


def test_too_many_slots_are_seen() -> None:
    """Three runs on a device with two slots."""
    small = replace(FIRST, gpu_memory_mb=1, ram_mb=0, cores=())
    found = conflicts([replace(small, allocation_id=str(n), token=n) for n in range(3)], CAPACITY)
    assert len(found) == 1
    assert "slots of gpu_0: 3 held, 2 there" in found[0]


def test_a_file_is_read_back(tmp_path: Path) -> None:
    """One record per line."""
    path = tmp_path / "records.jsonl"
    path.write_text(f"{FIRST.to_json()}\n{FIRST.to_json()}\n")
    assert read(path) == [FIRST, FIRST]
