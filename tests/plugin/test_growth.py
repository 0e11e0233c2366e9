"""What tasks have added to what their processes hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from celery_allocator.plugin.found import Held, Run
from celery_allocator.plugin.growth import Family, Grown, Growth
from celery_allocator.plugin.processes import own_ram_mb

_HOLD = (
    "import os, sys, time; held = b'x' * (int(sys.argv[1]) * 2**20); pid = os.fork() if sys.argv[2:] else 1; "
    "print('held', flush=True) if pid else None; sys.stdin.read() if pid else time.sleep(600)"
)
A, B, C = ("a", 1), ("b", 1), ("c", 1)
GPU, OTHER = "GPU-aaaa", "GPU-bbbb"


@pytest.fixture
def hold() -> Iterator[Callable[..., int]]:
    """Start a process that holds so many MB, perhaps together with one that it forks; returns its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(mb: int, *forks: str) -> int:
        made = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(mb), *forks],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(made)
        assert made.stdout is not None
        assert made.stdout.readline() == "held\n"
        return made.pid

    yield start
    for each in started:
        os.killpg(each.pid, 9)
        each.communicate()


class Seen:
    """A process at a look, on its GPU."""

    def __init__(self, grown: Grown) -> None:
        self.gpu_added_mb, self.gpu_before_mb = grown.gpu_added_mb[GPU], grown.gpu_before_mb[GPU]
        self.ram_added_mb, self.ram_before_mb = grown.ram_added_mb, grown.ram_before_mb


def look(
    growth: Growth, pid: int, runs: set[Run], gpu_mb: int | None, ram_mb: int = 0, told: dict[Run, Held] | None = None
) -> Seen:
    return Seen(growth.look({pid: frozenset(runs)}, {pid: Family((pid,), {GPU: gpu_mb}, ram_mb)}, told or {})[pid])


def test_a_fresh_process_has_held_nothing(hold: Callable[..., int]) -> None:
    growth, pid = Growth(), hold(60)
    growth.began(pid, A)
    grown = look(growth, pid, {A}, 700, 60)
    assert (grown.gpu_added_mb, grown.ram_added_mb(1000)) == (700, 60)
    assert 60 <= (grown.ram_added_mb(10) or 0) < 120


def test_what_it_held_while_it_was_idle_does_not_count(hold: Callable[..., int]) -> None:
    growth, pid = Growth(), hold(60)
    growth.began(pid, A)
    look(growth, pid, {A}, 700)
    idle = look(growth, pid, set(), 400)
    assert (idle.gpu_before_mb, idle.gpu_added_mb) == (400, 0)
    assert idle.ram_before_mb >= 60
    assert look(growth, pid, set(), 300).gpu_before_mb == 300
    growth.began(pid, B)
    for used, added in ((900, 600), (1000, 700), (200, 0)):
        grown = look(growth, pid, {B}, used, 200)
        assert grown.gpu_added_mb == added
        assert grown.ram_added_mb(0) == 0  # its memory is what it was


def test_what_came_and_went_unseen_may_have_left_what_it_was_promised(hold: Callable[..., int]) -> None:
    growth, pid = Growth(), hold(60)
    growth.began(pid, A, gpu_memory_mb=500, ram_mb=40)
    growth.began(pid, B, gpu_memory_mb=300, ram_mb=10)
    growth.began(pid, C, gpu_memory_mb=900, ram_mb=900)
    grown = look(growth, pid, {C}, 700, 60)
    assert (grown.gpu_added_mb, grown.ram_before_mb) == (200, 40)
    assert look(growth, pid, {C}, 900).gpu_added_mb == 400
    # The one that was seen may have left all that it was seen with; not more than there is.
    growth.began(pid, A, gpu_memory_mb=500)
    assert look(growth, pid, {A}, 1000).gpu_added_mb == 100
    growth.began(pid, B, gpu_memory_mb=500)
    assert look(growth, pid, {B}, 800).gpu_added_mb == 0


@pytest.mark.parametrize("promised", [{}, {"ram_mb": 100}])
def test_what_was_promised_nothing_may_have_left_anything(hold: Callable[..., int], promised: dict[str, int]) -> None:
    growth, pid = Growth(), hold(1)
    growth.began(pid, B if promised else None, **promised)
    growth.began(pid, A, gpu_memory_mb=500)
    assert look(growth, pid, {A}, 9000).gpu_added_mb == 0
    assert look(growth, pid, {A}, 9100).gpu_added_mb == 100


def test_a_process_that_was_missing_at_one_look_is_known_all_the_same(hold: Callable[..., int]) -> None:
    """It had been given a task, and was not heard to have begun it."""
    growth, pid = Growth(), hold(1)
    look(growth, pid, set(), 400)
    assert growth.look({}, {}) == {}
    growth.began(pid, A, gpu_memory_mb=1)
    assert look(growth, pid, {A}, 500).gpu_added_mb == 100


def test_a_task_that_is_not_the_allocators_is_remembered_while_it_runs(hold: Callable[..., int]) -> None:
    """Its process is looked at neither as an idle one nor for its sake."""
    growth, pid = Growth(), hold(1)
    look(growth, pid, set(), 100)
    growth.began(pid)
    growth.look({}, {})
    growth.began(pid, A, gpu_memory_mb=500)
    assert look(growth, pid, {A}, 9000).gpu_added_mb == 0


def test_tasks_that_share_a_process_are_taken_together() -> None:
    growth, here = Growth(), os.getpid()
    look(growth, here, set(), 100)
    growth.began(here, A, gpu_memory_mb=1)
    assert look(growth, here, {A}, 300).gpu_added_mb == 200
    growth.began(here, B, gpu_memory_mb=1)
    assert look(growth, here, {A, B}, 600).gpu_added_mb == 500
    assert look(growth, here, {B}, 600).gpu_added_mb == 500
    look(growth, here, set(), 600)
    growth.began(here, A, gpu_memory_mb=1)
    assert look(growth, here, {A}, 700).gpu_added_mb == 100


def test_what_the_driver_does_not_tell_is_not_known(hold: Callable[..., int]) -> None:
    growth, pid = Growth(), hold(1)
    growth.began(pid, A)
    assert look(growth, pid, {A}, None).gpu_added_mb is None
    look(growth, pid, set(), None)
    growth.began(pid, B)
    assert look(growth, pid, {B}, 500).gpu_added_mb is None
    look(growth, pid, {B}, None)
    growth.began(pid, A, gpu_memory_mb=500)
    assert look(growth, pid, {A}, 500).gpu_added_mb is None


def test_what_a_process_has_told_is_no_guess(hold: Callable[..., int]) -> None:
    """Whatever its predecessor was seen with, and was promised."""
    growth, pid = Growth(), hold(60)
    growth.began(pid, A, gpu_memory_mb=9000, ram_mb=9000)
    look(growth, pid, {A}, 8000, 8000)
    growth.began(pid, B, gpu_memory_mb=500, ram_mb=10)
    # It is seen before it has told: then a guess has to do, for that look.
    first = look(growth, pid, {B}, 2000, 70)
    assert (first.gpu_added_mb, first.ram_added_mb(0)) == (0, 0)
    told = {B: Held({GPU: 300}, 15), A: Held({GPU: 7777}, 7777)}
    then = look(growth, pid, {B}, 2000, 70, told)
    assert (then.gpu_before_mb, then.gpu_added_mb, then.ram_before_mb) == (300, 1700, 15)
    assert 60 - 15 <= (then.ram_added_mb(0) or 0) < 100
    # What was told is kept while it runs, also when that is read no more.
    assert look(growth, pid, {B}, 2100).gpu_added_mb == 1800


def test_what_it_could_not_tell_is_guessed(hold: Callable[..., int]) -> None:
    growth, pid = Growth(), hold(60)
    growth.began(pid, A)
    look(growth, pid, {A}, 400, 70)
    growth.began(pid, B)
    then = look(growth, pid, {B}, 1000, 70, {B: Held({GPU: None}, None)})
    assert then.gpu_added_mb == 600
    assert 60 <= then.ram_before_mb <= 70


def test_of_tasks_that_share_a_process_none_can_tell() -> None:
    growth, here = Growth(), os.getpid()
    look(growth, here, set(), 100)
    growth.began(here, A)
    growth.began(here, B)
    assert look(growth, here, {A, B}, 600, told={A: Held({GPU: 500}), B: Held({GPU: 550})}).gpu_added_mb == 500


def test_each_gpu_of_a_task_is_for_itself(hold: Callable[..., int]) -> None:
    growth, pid = Growth(), hold(1)

    def seen(runs: set[Run], gpus: dict[str, int | None], told: dict[Run, Held] | None = None) -> dict[str, int | None]:
        return growth.look({pid: frozenset(runs)}, {pid: Family((pid,), gpus, 0)}, told or {})[pid].gpu_added_mb

    growth.began(pid, A)
    assert seen({A}, {GPU: 700, OTHER: 900}) == {GPU: 700, OTHER: 900}
    seen(set(), {GPU: 300})
    # On the other one an idle process is not looked at: what is there at first counts as found, unless it has told.
    growth.began(pid, B)
    assert seen({B}, {GPU: 700, OTHER: 900}) == {GPU: 400, OTHER: 0}
    assert seen({B}, {GPU: 700, OTHER: None}) == {GPU: 400, OTHER: None}
    assert seen({B}, {GPU: 700, OTHER: 950}) == {GPU: 400, OTHER: 50}
    assert seen({B}, {GPU: 700, OTHER: 950}, {B: Held({GPU: 600, OTHER: 250})}) == {GPU: 100, OTHER: 700}


def test_memory_shared_among_the_processes_of_a_task_counts_once(hold: Callable[..., int]) -> None:
    """A process that has loaded data and forks: neither has it for itself, and it is theirs all the same."""
    alone, parent = hold(150), hold(400, "forks")
    assert 150 <= own_ram_mb([alone]) < 250
    both = [parent, *(child.pid for child in psutil.Process(parent).children())]
    assert len(both) == 2
    resident = sum(psutil.Process(pid).memory_info().rss for pid in both) // 2**20
    assert resident > 800
    worker = psutil.Process().memory_info().rss // 2**20
    assert 400 - worker < own_ram_mb(both) < 500


def test_a_process_that_is_gone_holds_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert own_ram_mb([gone.pid]) == 0
    growth = Growth()
    growth.began(gone.pid, A)
    assert growth.look({gone.pid: frozenset({A})}, {gone.pid: Family((), {}, None)})[gone.pid].ram_added_mb(0) is None
