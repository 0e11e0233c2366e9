"""A task that its process cannot suit, what the gate tells of its GPUs, and where a pool may fork."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from celery_allocator.errors import IsolationError
from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy
from celery_allocator.plugin import isolating, starting
from celery_allocator.plugin.moved import MovedOn, Unfit
from celery_allocator.settings import Settings

HELD = Allocation(
    allocation_id="alloc_1",
    task_id="t",
    task_name="work",
    state=State.RUNNING,
    kind=Kind.TASK,
    requirements=Requirements(gpu_memory_mb=2048, cpu_cores=2),
    strategy=Strategy.BEST_FIT,
    submitted_at=0.0,
    node="n1",
    device_id="gpu_0",
    device_uuid="GPU-a",
    cpu_cores=(3, 4),
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A process in which no task has run; what is asked of ``isolation`` is noted."""
    asked: list[str] = []

    def note(what: str) -> None:
        def noted(undo: ExitStack, *args: object) -> None:
            asked.append(what)
            undo.callback(asked.append, f"{what} undone")

        monkeypatch.setattr(isolating, what, noted)

    note("limit_threads")
    note("cap_gpu_memory")
    monkeypatch.setattr(isolating, "show_gpus", lambda undo, uuids: uuids == ("GPU-a",))
    monkeypatch.setattr(isolating, "kept_cap_mb", lambda: None)
    monkeypatch.setattr(isolating, "_ended", 0)
    monkeypatch.setattr(isolating, "current_process", lambda: SimpleNamespace(name="ForkPoolWorker-1"))
    yield asked
    isolating.leave("t")


def run(allocation: Allocation = HELD, totals: tuple[int, ...] = (8192,), **settings: bool) -> None:
    """One task from its beginning to its end."""
    isolating.enter("t", allocation, totals, Settings(**settings))
    try:
        isolating.check("t")
    finally:
        isolating.leave("t")


def test_what_is_set_is_put_back(fresh: list[str]) -> None:
    run()
    assert fresh == ["limit_threads", "cap_gpu_memory", "cap_gpu_memory undone", "limit_threads undone"]


def test_settings_and_claims_say_what_is_set(fresh: list[str]) -> None:
    run(thread_hints=False, gpu_memory_caps=False)
    run(replace(HELD, requirements=Requirements(cpu_cores=2), device_uuid=None), totals=())
    assert fresh == ["limit_threads", "limit_threads undone"]
    del fresh[:]
    run(replace(HELD, cpu_cores=()), totals=())
    assert fresh == [], "nobody knows what the GPU has"


def test_a_thread_beside_others_is_left_alone(fresh: list[str]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert fresh == []


@pytest.mark.parametrize("why", ["gpus", "cap"])
def test_a_child_that_does_not_suit_gives_the_task_to_another(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unfit = HELD
    if why == "gpus":
        unfit = replace(HELD, more_devices=(("gpu_1", "GPU-b"),))
    else:
        monkeypatch.setattr(isolating, "kept_cap_mb", lambda: 1535)
    run(replace(HELD, requirements=Requirements(gpu_memory_mb=1024)))
    with pytest.raises(Unfit, match="GPU-b" if why == "gpus" else "1535 MB"):
        run(unfit)
    assert issubclass(Unfit, MovedOn), "so it goes back into line"


def test_where_every_child_would_be_like_that_the_task_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go from child to child for good."""
    several = replace(HELD, more_devices=(("gpu_1", "GPU-b"),))
    with pytest.raises(IsolationError, match="before a first task ran"):
        run(several)
    monkeypatch.setattr(isolating, "current_process", lambda: SimpleNamespace(name="MainProcess"))
    run()
    with pytest.raises(IsolationError, match="solo pool"):
        run(several)


def test_only_a_pool_that_forks_has_to_mind_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def worker(pool: str, method: str = "fork") -> SimpleNamespace:
        return SimpleNamespace(pool_cls=pool, pool_start_method=method)

    caplog.set_level(logging.WARNING)  # whatever the worker of another test has left
    monkeypatch.setattr(starting, "cuda_is_initialised", lambda: True)
    assert "children that are forked from such a process cannot use it" in starting.check_main(
        worker("prefork"), "refuse"
    )
    assert starting.check_main(worker("processes"), "refuse")
    assert not starting.check_main(worker("prefork", "spawn"), "refuse")
    assert not starting.check_main(worker("solo"), "refuse")
    assert not starting.check_main(worker("threads"), "refuse")
    assert not caplog.messages
    assert not starting.check_main(worker("prefork"), "warn")
    assert "its tasks will fail if they use the GPU" in caplog.text
    monkeypatch.setattr(starting, "cuda_is_initialised", lambda: False)
    assert not starting.check_main(worker("prefork"), "refuse")


@pytest.mark.parametrize("on_cuda", ["refuse", "warn"])
def test_a_fork_after_cuda_was_initialised_stops_the_worker(
    on_cuda: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    initialised, stops = [False], []
    inner = SimpleNamespace(_create_worker_process=lambda i: f"child {i}")
    monkeypatch.setattr(starting, "cuda_is_initialised", lambda: initialised[0])
    for _ in range(2):  # the consumer has started again
        starting.watch_forks(SimpleNamespace(_pool=inner), on_cuda, lambda: stops.append("stop"))
    assert inner._create_worker_process(1) == "child 1"
    assert (stops, caplog.messages) == ([], [])
    initialised[0] = True
    assert inner._create_worker_process(2) == "child 2"
    assert stops == (["stop"] if on_cuda == "refuse" else [])
    assert len(caplog.messages) == 1
    starting.watch_forks(SimpleNamespace(), on_cuda, stops.clear)  # a pool of threads
