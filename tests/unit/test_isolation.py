"""Pinning to cores, and which GPU a process sees."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_allocator.isolation import Previous, device_environment, pin, pinned, unpin
from celery_allocator.model import DeviceInventory

ABSENT = 100_000  # no machine has a core of that id


@pytest.fixture
def here() -> Iterator[set[int]]:
    """The cores of this process, at least two; its mask is put back after the test."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("pinning can only be seen with two cores")
    yield set(before)
    os.sched_setaffinity(0, before)


@pytest.fixture
def thread() -> Iterator[Callable[[Callable[[], set[int]]], set[int]]]:
    """Runs functions in one other thread, which lives as long as the test."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(threading.get_native_id).result()
        yield lambda function: pool.submit(function).result()


def _mask() -> set[int]:
    return os.sched_getaffinity(0)  # of the calling thread


def test_the_process_is_pinned_for_the_body_and_restored_after(here: set[int]) -> None:
    one = {min(here)}
    with pinned(one) as previous:
        assert previous is not None
        assert _mask() == one
    assert _mask() == here


def test_it_is_restored_when_the_body_fails(here: set[int]) -> None:
    with pytest.raises(ZeroDivisionError), pinned({max(here)}):
        raise ZeroDivisionError
    assert _mask() == here


def test_every_thread_is_pinned_and_gets_its_own_mask_back(
    here: set[int], thread: Callable[[Callable[[], set[int]]], set[int]]
) -> None:
    low, high = {min(here)}, {max(here)}

    def bind() -> set[int]:
        os.sched_setaffinity(0, high)
        return _mask()

    assert thread(bind) == high
    with pinned(low):
        assert thread(_mask) == low
    assert thread(_mask) == high
    assert _mask() == here


def test_a_thread_born_while_pinned_gets_the_process_s_mask(here: set[int]) -> None:
    one = {min(here)}
    previous = pin(one)
    with ThreadPoolExecutor(max_workers=1) as pool:
        assert pool.submit(_mask).result() == one
        unpin(previous)
        assert pool.submit(_mask).result() == here


def test_a_thread_that_ended_while_pinned_does_no_harm(here: set[int]) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(_mask).result()
        previous = pin({min(here)})
    unpin(previous)
    assert _mask() == here


def test_pins_nest(here: set[int]) -> None:
    with pinned({min(here)}):
        with pinned({max(here)}):
            assert _mask() == {max(here)}
        assert _mask() == {min(here)}
    assert _mask() == here


def test_cores_that_do_not_exist_here_pin_nothing(here: set[int]) -> None:
    assert pin({ABSENT}) is None
    assert pin(()) is None
    with pinned([ABSENT]) as previous:
        assert previous is None
        assert _mask() == here
    unpin(None)
    assert _mask() == here


def test_of_the_granted_cores_those_that_exist_are_used(here: set[int]) -> None:
    with pinned([ABSENT, max(here)]):
        assert _mask() == {max(here)}


def test_programs_that_the_task_starts_inherit_the_pin(here: set[int]) -> None:
    ask = [sys.executable, "-c", "import os; print(*sorted(os.sched_getaffinity(0)))"]
    with pinned([max(here)]):
        assert subprocess.check_output(ask, text=True).split() == [str(max(here))]


def test_cores_outside_the_mask_that_the_process_was_started_with_stay_untouched(here: set[int]) -> None:
    low, high = min(here), max(here)
    started_on_low = (
        f"import os; os.sched_setaffinity(0, {{{low}}})\n"
        f"from celery_allocator.isolation import pin\n"
        f"print(pin([{high}]), pin([{low}, {high}]) is not None, os.sched_getaffinity(0))"
    )
    assert subprocess.check_output([sys.executable, "-c", started_on_low], text=True).strip() == f"None True {{{low}}}"


# Other tests may have left threads, which Python warns of at a fork; this child uses none.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_pins_itself_only(here: set[int]) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        pin({max(here)})
        os.write(write, repr(_mask()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == repr({max(here)})
    assert _mask() == here


def test_a_refusal_by_the_system_pins_no_thread(
    here: set[int], thread: Callable[[Callable[[], set[int]]], set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.sched_setaffinity, []

    def second_is_refused(tid: int, mask: set[int]) -> None:
        calls.append(tid)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "taken away by the control group")
        real(tid, mask)

    monkeypatch.setattr(os, "sched_setaffinity", second_is_refused)
    assert pin({min(here)}) is None
    assert len(calls) > 2
    assert _mask() == here
    assert thread(_mask) == here


def test_what_to_go_back_to_says_it_for_every_thread(here: set[int]) -> None:
    previous = pin({min(here)})
    try:
        assert isinstance(previous, Previous)
        assert previous.process == here
        assert previous.threads[threading.get_native_id()] == here
    finally:
        unpin(previous)


@pytest.mark.parametrize(
    ("device", "visible"),
    [
        (DeviceInventory("gpu_1", 1, "GPU-1234", "NVIDIA Test", 24576), "GPU-1234"),
        (DeviceInventory("gpu_0", 0, "GPU-sim-a-0", "Simulated GPU", 24576, simulated=True), ""),
        (None, ""),
    ],
)
def test_a_process_sees_its_device_alone(device: DeviceInventory | None, visible: str) -> None:
    assert device_environment(device) == {"CUDA_VISIBLE_DEVICES": visible}
