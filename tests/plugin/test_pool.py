"""What is mended on Celery's pool of processes. Doubles of its parts stand in: the moments meant here cannot be hit."""

from __future__ import annotations

import os
from collections import deque
from types import SimpleNamespace
from typing import Any

from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import Hub

from celery_allocator.plugin.pool import forget_termination, is_unbegun, mend


class Process:
    def __init__(self, alive: bool = True) -> None:
        self.alive, self.pid, self.inqW_fd = alive, 4711, 9

    def _is_alive(self) -> bool:
        return self.alive


class Request:
    def __init__(self, claim: object) -> None:
        self._claim = claim

    def on_accepted(self) -> None: ...


class Inner:
    """Celery's ``AsynPool``, as far as it is touched."""

    def __init__(self) -> None:
        self._cache: dict[int, Any] = {}
        self.outbound_buffer: deque[Any] = deque()
        self._busy_workers: set[int] = set()
        self._pool: list[Any] = []
        self.given_again: list[Any] = []
        self.said: list[Any] = []

    def on_job_process_down(self, job: Any, pid_gone: int) -> None:
        if not job._accepted:
            self.given_again.append(job)

    def process_flush_queues(self, process: Process) -> None:
        for job in self.said:
            job._accepted = True

    _track_child_process = AsynPool._track_child_process
    _untrack_child_process = AsynPool._untrack_child_process

    def _event_process_exit(self, *args: Any) -> None: ...


def job(*, ours: bool = True, accepted: bool = False, process: Process | None = None) -> Any:
    request = Request(object() if ours else None)
    return SimpleNamespace(
        _accepted=accepted, _write_to=process, _scheduled_for=process, _accept_callback=request.on_accepted
    )


def pools() -> tuple[Any, Inner]:
    inner = Inner()

    def flush() -> None:
        for key, each in list(inner._cache.items()):
            if not each._accepted:
                del inner._cache[key]
        inner.outbound_buffer.clear()
        inner._busy_workers.clear()

    return SimpleNamespace(_pool=inner, flush=flush), inner


def test_a_job_that_a_dead_child_began_is_not_given_to_another() -> None:
    pool, inner = pools()
    mend(pool)
    begun, unread = job(process=Process(alive=False)), job(process=Process(alive=False))
    inner.said.append(begun)
    inner.on_job_process_down(begun, 4711)
    assert inner.given_again == []
    inner.said.clear()
    inner.on_job_process_down(unread, 4711)
    assert inner.given_again == [unread]


def test_a_flush_drops_what_the_broker_will_deliver_again_and_nothing_of_ours() -> None:
    pool, inner = pools()
    mend(pool)
    process = Process()
    written, unsent, plain, running = job(process=process), job(), job(ours=False), job(accepted=True)
    inner._cache.update({1: written, 2: unsent, 3: plain, 4: running})
    inner.outbound_buffer.extend([unsent, plain])
    pool.flush()
    assert inner._cache == {1: written, 2: unsent, 4: running}
    assert list(inner.outbound_buffer) == [unsent]
    assert inner._busy_workers == {process.inqW_fd}, "it has a job to begin: no other one for it yet"


def test_what_its_child_could_not_begin_goes_to_another_after_a_flush() -> None:
    pool, inner = pools()
    mend(pool)
    orphan = job(process=Process(alive=False))
    inner._cache[1] = orphan
    pool.flush()
    assert inner.given_again == [orphan]


def test_a_pool_is_mended_once_and_only_one_of_processes() -> None:
    pool, inner = pools()
    mend(pool)
    mended = inner.on_job_process_down
    mend(pool)
    assert inner.on_job_process_down == mended
    mend(SimpleNamespace())


def test_a_process_that_begins_another_task_was_not_terminated() -> None:
    pool, inner = pools()
    process = SimpleNamespace(pid=4711, _job_terminated=True, _controlled_termination=True)
    inner._pool.append(process)
    forget_termination(pool, 1)
    assert process._job_terminated
    forget_termination(pool, 4711)
    assert not process._job_terminated
    assert not process._controlled_termination


def test_unbegun_is_what_no_child_can_have_been_given() -> None:
    waiting = SimpleNamespace(worker_pid=None, _apply_result=None)
    assert is_unbegun(waiting, pool_stopped=False)
    assert not is_unbegun(SimpleNamespace(worker_pid=1, _apply_result=None), pool_stopped=True)
    buffered = SimpleNamespace(worker_pid=None, _apply_result=job)
    assert is_unbegun(buffered, pool_stopped=True)
    assert not is_unbegun(buffered, pool_stopped=False), "the pool may give it to a child any moment"
    given = SimpleNamespace(worker_pid=None, _apply_result=lambda: job(process=Process()))
    assert not is_unbegun(given, pool_stopped=True)
    of_threads = SimpleNamespace(worker_pid=None, _apply_result=SimpleNamespace)
    assert not is_unbegun(of_threads, pool_stopped=True)


def test_a_child_that_was_taken_for_a_dead_one_is_watched_again() -> None:
    """By Celery's own methods, and without ending the worker."""
    pool, inner = pools()
    mend(pool)
    ours, childs = os.pipe()
    process: Any = SimpleNamespace(_popen=SimpleNamespace(sentinel=ours))
    hub = Hub()
    try:
        inner._track_child_process(process, hub)
        inner._untrack_child_process(process, hub)
        assert not hub.readers
        inner._track_child_process(process, hub)
        assert list(hub.readers) == [process._sentinel_poll]
        inner._untrack_child_process(process, hub)
    finally:
        hub.close()
        os.close(ours)
        os.close(childs)
