"""A worker in this process, by ``celery.contrib.testing``: the way users test their own tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_allocator import current_allocation
from celery_allocator.ledger import Ledger
from celery_allocator.plugin.session import session
from tests.support.ledger_checks import assert_empty
from tests.support.waiting import wait_until


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_tasks_are_placed_and_released(
    make_app: Callable[..., Celery], ledger: Ledger, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    """``start_worker(app, gpu="0")`` serves a simulated device; leaving it leaves an empty ledger."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "untouched")
    app = make_app(allocator_devices="sim:1x4096", allocator_node="here", allocator_cpu_cores=2, allocator_ram_mb=1000)

    @app.task(name="where", shared=False, resources={"gpu_memory_mb": 1000, "ram_mb": 10})
    def where() -> dict[str, Any] | None:
        allocation = current_allocation()
        return allocation.to_wire() if allocation else None

    @app.task(name="fails", shared=False, resources={"gpu_memory_mb": 4096})
    def fails() -> None:
        raise ValueError("as asked")

    with start_worker(app, pool=pool, concurrency=1, perform_ping_check=False, gpu="0"):
        held = where.delay().get(timeout=45)
        assert (held["node"], held["device"], held["req"]["gpu_memory_mb"]) == ("here", "gpu_0", 1000)
        with pytest.raises(ValueError, match="as asked"):
            fails.delay().get(timeout=45)
        assert current_allocation() is None
        wait_until(lambda: ledger.held() == (), 30)
        assert [w.device_id for w in ledger.snapshot().workers] == ["gpu_0"]
    session(app).keeper = None
    assert ledger.snapshot().workers == ()
    assert_empty(ledger)


def test_a_worker_that_leaves_does_not_come_back(make_app: Callable[..., Celery], ledger: Ledger) -> None:
    """Also where its heartbeat is due while it leaves; one that was refused leaves without another word."""
    app = make_app(allocator_devices="sim:1x4096", allocator_node="here", allocator_heartbeat_s=0.05)
    with start_worker(app, pool="solo", concurrency=1, perform_ping_check=False, gpu="0"):
        keeper: Any = session(app).keeper
        wait_until(lambda: ledger.snapshot().workers, 30)
        wait_until(lambda: time.monotonic() > keeper._beat_at, 30)
    session(app).keeper = None
    happened = [fields["event"] for _, fields in ledger.events()]
    assert happened.count("worker") == 1
    assert ledger.snapshot().workers == ()
