"""Ending children of a real pool of processes, with an event loop that goes on when the test says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from celery_allocator.plugin import children
from celery_allocator.plugin.processes import born, is_gone
from tests.support.cluster import SOON_S

_HOLD = "import time; time.sleep(600)"


def hold(go: str, family: bool = False) -> int:
    """In a child: run until there is a file ``go``, which tells of this process first."""
    started = subprocess.Popen([sys.executable, "-c", _HOLD]) if family else None
    Path(f"{go}.in").write_text(f"{os.getpid()} {started.pid if started else ''}")
    until = time.monotonic() + SOON_S
    while not Path(go).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return os.getpid()


class Children:
    """A pool of two, and requests as Celery makes them."""

    def __init__(self, folder: Path) -> None:
        self.hub = Hub()
        set_event_loop(self.hub)
        self.folder = folder
        app = Celery("children", set_as_current=False)
        self.pool = TaskPool(2, app=app, threads=False, putlocks=False, initargs=(app, "children"))
        self.pool.start()
        self.pool.register_with_event_loop(self.hub)
        self._loop = self.hub.create_loop()
        self.hub.call_repeatedly(0.02, lambda: None)
        self.until(lambda: len(children.idle(self.pool)) == 2)

    def until(self, predicate: Callable[[], Any]) -> Any:
        """Let the event loop run until then."""
        deadline = time.monotonic() + SOON_S
        while not (found := predicate()):
            assert time.monotonic() < deadline, "it did not happen"
            next(self._loop)
        return found

    def run(self, name: str, then: Callable[[Any], Any] = lambda result: None, **options: Any) -> SimpleNamespace:
        """Have a child run :func:`hold`; returns its request once it has begun, and the loop has heard that.

        ``then`` is called with its result, as the loop hears that.
        """
        request = SimpleNamespace(worker_pid=None, results=[], errors=[])
        go = self.folder / name

        def accepted(pid: int, _: float) -> None:
            request.worker_pid = pid

        result = self.pool.apply_async(
            hold,
            (str(go),),
            options,
            accept_callback=accepted,
            callback=lambda result: (request.results.append(result), then(result)),
            error_callback=request.errors.append,
            correlation_id=name,
        )
        request._apply_result = lambda: result
        request.go = go
        self.until(lambda: request.worker_pid and Path(f"{go}.in").exists() and Path(f"{go}.in").read_text())
        request.family = [int(pid) for pid in Path(f"{go}.in").read_text().split()]
        return request

    def stop(self) -> None:
        self.pool._pool.terminate()
        self.pool._pool.join()
        self.hub.close()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Children]:
    before = get_event_loop()
    made = Children(tmp_path)
    yield made
    made.stop()
    set_event_loop(before)


def test_a_child_is_killed_with_what_it_started(pool: Children) -> None:
    request, neighbour = pool.run("a", family=True), pool.run("b")
    child, started = request.family
    killed = children.kill_task(pool.pool, request)
    assert killed is not None
    assert [pid for pid, _ in killed] == [child, started]
    pool.until(lambda: all(is_gone(pid, since) for pid, since in killed))
    pool.until(lambda: request.errors)
    assert "signal 9" in str(request.errors[0].exception)
    assert psutil.Process(neighbour.worker_pid).status() != psutil.STATUS_STOPPED
    neighbour.go.touch()
    pool.until(lambda: neighbour.results)
    pool.until(lambda: len(children.idle(pool.pool)) == 2)


def test_a_task_that_has_said_that_it_ended_is_not_killed(pool: Children) -> None:
    """Its child may run another one by now. The loop has not heard it yet, and then it has."""
    request = pool.run("a")
    child = next(one for one in pool.pool._pool._pool if one.pid == request.worker_pid)
    request.go.touch()
    assert child.outq._reader.poll(SOON_S)
    assert children.kill_task(pool.pool, request) is None
    assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    pool.until(lambda: request.results)
    assert children.kill_task(pool.pool, request) is None
    assert request.results == [child.pid]
    other = pool.run("b")
    other.go.touch()
    pool.until(lambda: other.results)
    assert {child.pid, *children.idle(pool.pool)} == set(children.idle(pool.pool))


def test_a_child_that_dies_first_is_no_error(pool: Children) -> None:
    request = pool.run("a")
    process = psutil.Process(request.worker_pid)
    process.kill()
    pool.until(lambda: is_gone(request.worker_pid, None))
    assert children.kill_task(pool.pool, request) is None
    pool.until(lambda: request.errors)
    assert children.kill_task(pool.pool, request) is None


def test_an_idle_child_is_recycled_and_gets_nothing_more(pool: Children) -> None:
    first, second = children.idle(pool.pool)
    since = born(first)
    assert children.recycle(pool.pool, first, since)
    assert children.idle(pool.pool) == [second]
    assert not children.recycle(pool.pool, first, since)
    # What comes now goes to the other one, and what comes then to the new one.
    request = pool.run("a")
    assert request.worker_pid == second
    later = pool.run("b")
    assert later.worker_pid not in (first, second)
    assert is_gone(first, since)
    assert not children.recycle(pool.pool, later.worker_pid, born(later.worker_pid))
    for one in (request, later):
        one.go.touch()
        pool.until(lambda one=one: one.results)
    pool.until(lambda: len(children.idle(pool.pool)) == 2)
    assert request.errors == later.errors == []


def test_a_child_to_which_something_is_on_its_way_is_not_recycled(pool: Children) -> None:
    """Given, and not begun: nobody has heard from the child by then."""
    first, second = children.idle(pool.pool)
    stopped = [psutil.Process(pid) for pid in (first, second)]
    for process in stopped:
        process.suspend()
    results: list[int] = []
    go = pool.folder / "a"
    go.touch()
    pool.pool.apply_async(hold, (str(go),), callback=results.append, correlation_id="a")
    pool.until(lambda: len(children.idle(pool.pool)) == 1)
    (given,) = {first, second} - set(children.idle(pool.pool))
    assert not children.recycle(pool.pool, given, born(given))
    for process in stopped:
        process.resume()
    pool.until(lambda: results)
    assert results == [given]


def test_tasks_that_come_while_children_are_recycled_are_all_run_once(pool: Children) -> None:
    results: list[int] = []
    errors: list[Any] = []
    go = pool.folder / "now"
    go.touch()
    recycled = set()
    for number in range(40):
        pool.pool.apply_async(
            hold, (str(go),), callback=results.append, error_callback=errors.append, correlation_id=f"t{number}"
        )
        if number % 4 == 0:  # given and not written, or written and not begun, or begun: whichever it is by now
            for pid in [one.pid for one in pool.pool._pool._pool]:
                if children.recycle(pool.pool, pid, born(pid)):
                    recycled.add(pid)
        if number % 8 == 7:
            pool.until(lambda number=number: len(results) + len(errors) > number)
    pool.until(lambda: len(results) + len(errors) == 40)
    assert errors == []
    assert len(recycled) > 2
    # Whom it was decided about it ended, also those that were given nothing more in time.
    pool.until(lambda: all(is_gone(pid, None) for pid in recycled))
    pool.until(lambda: len(children.idle(pool.pool)) == 2)


def test_a_child_that_has_told_its_result_is_retired(pool: Children) -> None:
    """As the loop hears that: it gets nothing more, and another one is there soon."""
    request = pool.run("a", lambda pid: children.retire(pool.pool, pid))
    child = request.worker_pid
    request.go.touch()
    pool.until(lambda: request.results)
    assert child not in children.idle(pool.pool)
    later = [pool.run("b"), pool.run("c")]
    assert child not in [one.worker_pid for one in later]
    assert is_gone(child, None)
    for one in later:
        one.go.touch()
        pool.until(lambda one=one: one.results)
    children.retire(pool.pool, child)  # nobody's any more
    pool.until(lambda: len(children.idle(pool.pool)) == 2)
    assert [one.errors for one in (request, *later)] == [[], [], []]


def test_what_a_retired_child_was_given_before_it_runs(pool: Children) -> None:
    request = pool.run("a")
    children.retire(pool.pool, request.worker_pid)
    other = pool.run("b")
    assert other.worker_pid != request.worker_pid
    request.go.touch()
    pool.until(lambda: request.results)
    pool.until(lambda: is_gone(request.worker_pid, None))
    other.go.touch()
    pool.until(lambda: other.results and len(children.idle(pool.pool)) == 2)
    assert (request.errors, other.errors) == ([], [])


def test_another_process_of_that_id_is_not_recycled(pool: Children) -> None:
    first, _ = children.idle(pool.pool)
    assert not children.recycle(pool.pool, first, "an earlier one")
    assert not children.recycle(pool.pool, os.getpid(), born(os.getpid()))
    assert len(children.idle(pool.pool)) == 2


def test_a_pool_that_closes_is_left_alone(pool: Children) -> None:
    first, _ = children.idle(pool.pool)
    pool.pool._pool.close()
    assert children.idle(pool.pool) == []
    assert not children.recycle(pool.pool, first, born(first))
    assert not children.can_end(pool.pool)


def test_other_pools_have_no_children() -> None:
    threads = SimpleNamespace(executor=None)
    assert children.idle(threads) == []
    assert not children.can_end(threads)
    assert children.kill_task(threads, SimpleNamespace(worker_pid=os.getpid())) is None
    assert not children.recycle(threads, os.getpid(), born(os.getpid()))
    children.retire(threads, os.getpid())
