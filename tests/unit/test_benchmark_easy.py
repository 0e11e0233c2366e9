"""The reference schedulers of the benchmarks, on jobs whose starts can be worked out by hand."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.support.processes import ROOT


@pytest.fixture(scope="module")
def easy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_easy", ROOT / "benchmarks/easy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def starts(easy: ModuleType, rows: list[tuple[float, float, int]], nodes: list[int], **how: bool) -> list[float]:
    """Of arrivals, run times (which are the estimates too) and processors."""
    return list(easy.schedule([easy.Job(at, run, procs, run) for at, run, procs in rows], nodes, **how))


#: Ten processors: six are taken to 100, then a job of eight waits.
FULL = [(0, 100, 6), (1, 50, 8)]


def test_first_come_first_served_lets_nobody_pass(easy: ModuleType) -> None:
    assert starts(easy, [*FULL, (2, 5, 1)], [10], backfill=False) == [0, 100, 100]


def test_what_ends_before_the_reservation_passes(easy: ModuleType) -> None:
    assert starts(easy, [*FULL, (2, 98, 4), (3, 5, 1)], [10]) == [0, 100, 2, 100]
    assert starts(easy, [*FULL, (2, 99, 4)], [10]) == [0, 100, 150]


def test_what_uses_only_what_is_left_over_passes_however_long(easy: ModuleType) -> None:
    """Two of ten are left beside the eight; the second of two long jobs finds them taken."""
    assert starts(easy, [*FULL, (2, 1000, 2), (3, 1000, 2)], [10]) == [0, 100, 2, 150]


def test_the_shortest_passes_first_if_asked_for(easy: ModuleType) -> None:
    rows = [(0, 100, 10), (1, 100, 10), (2, 60, 6), (3, 50, 6)]
    # At 100 the second begins; at 200 the third and then the fourth, in order of arrival.
    assert starts(easy, rows, [10]) == [0, 100, 200, 260]
    crowded = [(0, 100, 6), (0, 20, 4), (1, 50, 8), (2, 60, 4), (3, 50, 4)]
    # At 20 four are free until the reservation at 100: room for one of the two, the first or the shorter.
    assert starts(easy, crowded, [10]) == [0, 0, 100, 20, 150]
    assert starts(easy, crowded, [10], shortest_first=True) == [0, 0, 100, 150, 20]


def test_an_estimate_that_has_expired_counts_as_free(easy: ModuleType) -> None:
    """At 10 the second arrives before the first ends, and starts at once all the same."""
    assert starts(easy, [(0, 10, 10), (10, 5, 10)], [10]) == [0, 10]


def test_on_several_nodes_only_one_is_reserved(easy: ModuleType) -> None:
    rows = [(0, 100, 6), (0, 200, 6), (1, 50, 8), (2, 1000, 4), (3, 99, 4)]
    # The job of eight is promised the first node at 100; a long one of four takes the second's.
    assert starts(easy, rows, [10, 10]) == [0, 0, 100, 2, 150]


def test_bounded_slowdown(easy: ModuleType) -> None:
    assert easy.bounded_slowdown(0, 1) == 1
    assert easy.bounded_slowdown(30, 1) == 3.1
    assert easy.bounded_slowdown(30, 60) == 1.5
