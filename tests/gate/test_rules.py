"""Each rule over a history made by hand: the value is the one computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from celery_allocator.gate import Judgement
from celery_allocator.history.percentile import nearest_rank, ordered
from tests.gate.book import Book


def test_percentiles_are_by_nearest_rank() -> None:
    """Rank ⌈p/100 · n⌉, from 1: of 1…20 the 95th is 19 (not 20, as floating point would have it)."""
    twenty = ordered(range(1, 21))
    assert [nearest_rank(twenty, p) for p in (0, 5, 50, 95, 95.1, 99, 100)] == [1, 1, 10, 19, 20, 20, 20]
    assert nearest_rank(ordered([7.5]), 50) == 7.5
    assert nearest_rank(ordered([3, 1, 2]), 50) == 2
    assert nearest_rank(ordered([]), 50) is None


def test_waits(book: Book) -> None:
    for wait in range(1, 21):
        book.started(float(wait))
    book.started(500.0, at_s=-1)  # started before the hour,
    book.started(500.0, at_s=9000)  # and submitted after it

    assert book.value("wait_p50") == (10.0, 20)
    assert book.value("wait_p95") == (19.0, 20)
    assert book.value("wait_p99") == (20.0, 20)
    assert book.value("wait_percentile", percent=10) == (2.0, 20)


def test_a_wait_ends_with_the_first_start(book: Book) -> None:
    """It was lost and started again, long after the hour."""
    book.allocation(submitted_at=100, wait_s=5.0, granted_at=9000, started_at=9001)
    assert book.value("wait_p50") == (5.0, 1)
    assert book.value("wait_p50", end_s=3600 * 3) == (None, 0)


def test_a_wait_begins_with_the_eta(book: Book) -> None:
    book.allocation(submitted_at=-9000, eta_at=100, wait_s=7.0, granted_at=106, started_at=107)
    assert book.value("wait_p95") == (7.0, 1)


def test_what_still_waits_counts_once_it_has_waited_longer(book: Book) -> None:
    for wait in (1.0, 2.0, 3.0, 4.0):
        book.started(wait)
    waiting = {"state": "waiting", "grants": 0, "node": None, "device": None}
    book.allocation(submitted_at=3597, **waiting)  # for 3 s: no more than the p95 of those that started (4)
    assert book.value("wait_p95") == (4.0, 4)
    book.allocation(submitted_at=3000, **waiting)  # for 600 s
    book.allocation(submitted_at=3600, **waiting)  # after the hour
    book.allocation(submitted_at=0, eta_at=9000, **waiting | {"state": "delayed"})
    book.allocation(submitted_at=0, **waiting | {"kind": "manual"})
    result = book.measure("wait_p95", maximum=60)
    assert (result.value, result.measurement.samples) == (600.0, 5)
    assert result.judgement is Judgement.FAILED
    assert result.measurement.details == ("1 still wait, the longest for 600.0 s",)


def test_start_delay(book: Book) -> None:
    for delay in range(1, 21):
        book.allocation(granted_at=100, started_at=100 + delay)
    book.allocation(granted_at=100, started_at=None)
    assert book.value("start_delay_p95") == (19.0, 20)


def test_estimates(book: Book) -> None:
    for late in (-30, 5, 10):
        book.started(100.0, at_s=1000, queue_position=1, estimated_start_at=1000 - late)
    book.started(100.0, queue_position=4, estimated_start_at=None)
    book.started(0.0, queue_position=None, estimated_start_at=None)  # had not to wait
    assert book.value("estimate_error") == (10.0, 3)
    assert book.value("estimate_error", percent=100) == (30.0, 3)
    assert book.value("estimate_coverage") == (0.75, 4)


def test_dates(book: Book) -> None:
    def promised(late: float, by_p90: float, **columns: Any) -> None:
        dates = {"estimated_start_at": 1000 - late, "estimated_start_p90_at": 1000 - by_p90, "queue_position": 1}
        book.started(100.0, at_s=1000, **{**dates, **columns})

    promised(-20, -50)  # earlier than both
    promised(0, 0)  # by the second
    promised(30, -5)
    promised(60, 1)  # too late
    promised(500, 400, rearranged_at=950)  # moved since: the promise was void
    promised(700, 600, queue_position=None)  # had not to wait
    book.started(100.0, at_s=1000, queue_position=1, estimated_start_at=990)  # of an older version: no second date
    book.started(100.0, at_s=5000, queue_position=1, estimated_start_at=0, estimated_start_p90_at=0)  # after the window
    assert book.value("dates_covered") == (0.75, 4)
    assert book.value("dates_error") == (20.0, 5)
    assert book.value("dates_error", percent=100) == (60.0, 5)


def test_the_tenant_that_waits_longest(book: Book) -> None:
    for wait in range(1, 11):
        book.started(float(wait), tenant="a")
        book.started(float(wait * 10), tenant="b", task_name="large")
    for wait in (500, 600, 700, 800):
        book.started(float(wait), tenant="few")
    assert book.value("tenant_wait", percent=50) == (50.0, 20)
    assert book.value("tenant_wait") == (100.0, 20)
    assert book.measure("tenant_wait").measurement.details == ("b: 100.0 s", "a: 10.0 s")
    # One more of the few, that is still stuck.
    book.allocation(tenant="few", state="waiting", submitted_at=100, started_at=None, ended_at=None)
    assert book.value("tenant_wait", percent=50) == (700.0, 25)
    assert book.value("tenant_wait", tenant="a", percent=100) == (10.0, 10)


def test_no_tenant_is_a_tenant_too(book: Book) -> None:
    for _ in range(5):
        book.started(3.0)
    assert book.value("tenant_wait") == (3.0, 5)
    assert book.measure("tenant_wait").measurement.details == ("without a tenant: 3.0 s",)


def test_endings(book: Book) -> None:
    counts = {"success": 6, "failure": 1, "lost": 1, "expired": 2, "cancelled": 3, "retry": 4, "released": 1, "ttl": 2}
    for outcome, count in counts.items():
        for _ in range(count):
            book.ended(outcome)
    book.ended("failure", at_s=3600)  # not in the hour any more
    book.allocation(outcome=None)

    assert book.value("success_rate") == (0.75, 8)
    assert book.value("failure_rate") == (0.25, 8)
    assert book.value("expired_rate") == (0.1, 20)
    assert book.value("cancelled_rate") == (0.15, 20)
    assert book.value("throughput") == (6.0, 20)
    assert book.measure("success_rate").measurement.details == ("1 × failure, 1 × lost",)


def test_filters_choose_by_name_tenant_and_device(book: Book) -> None:
    book.ended("success", task_name="proj.infer", tenant="a", node="n1", device="gpu_0")
    book.ended("failure", task_name="proj.train", tenant="b", node="n2", device="gpu_0")
    book.ended("failure", task_name="other", tenant="", node=None, device=None)
    assert book.value("success_rate") == (1 / 3, 3)
    assert book.value("success_rate", task="proj.*") == (0.5, 2)
    assert book.value("success_rate", tenant="a") == (1.0, 1)
    assert book.value("success_rate", device="n2/*") == (0.0, 1)
    assert book.value("success_rate", device="*/gpu_0") == (0.5, 2)
    assert book.value("success_rate", task="proj.*", tenant="b") == (0.0, 1)
    assert book.value("success_rate", task="none") == (None, 0)


def test_out_of_memory(book: Book) -> None:
    errors = ["", "OutOfMemoryError", "MemoryError", "ValueError", "CudaOutOfMemory"]
    for number, error in enumerate(errors):
        name = book.allocation(task_name="train" if number < 3 else "infer", tenant="a")
        outcome = "failure" if error else "success"
        book.event("released", name, 10 + number, name="x", device="n1/gpu_0", outcome=outcome, error=error)
    book.event("released", "b", 50, outcome="ttl")
    assert book.value("oom_rate") == (0.6, 5)
    assert book.value("oom_rate", task="train") == (2 / 3, 3)
    assert book.value("oom_rate", tenant="b") == (None, 0)
    assert book.value("oom_rate", errors=["Value*"]) == (0.2, 5)
    assert set(book.measure("oom_rate").measurement.details) == {
        "1 × OutOfMemoryError",
        "1 × MemoryError",
        "1 × CudaOutOfMemory",
    }


def test_regrants_and_losses(book: Book) -> None:
    for second in range(10):
        book.event("granted", f"a{second}", second, device="n1/gpu_0")
        book.event("started", f"a{second}", second, device="n1/gpu_0")
    book.event("lost", "a1", 20, device="n1/gpu_0", again=1)
    book.event("lost", "a2", 20, device="n1/gpu_1", again=0)
    book.event("withdrawn", "a3", 20, device="n1/gpu_0")
    book.event("requeued", "a4", 20, device="n1/gpu_0")
    book.event("requeued", "a5", 20, device="")  # a parked message
    book.event("lost", "a6", 4000, device="n1/gpu_0", again=1)

    assert book.value("regrants") == (3.0, 10)
    assert book.value("regrant_rate") == (0.3, 10)
    assert book.value("regrant_rate", causes=["lost"]) == (0.1, 10)
    assert book.value("losses") == (2.0, 10)
    assert book.value("loss_rate") == (0.2, 10)
    assert book.value("losses", device="n1/gpu_1") == (1.0, 0)


def test_gaps(book: Book) -> None:
    book.event("settled", "a1", 5)
    book.gap(-100, -50)
    assert book.value("history_gaps") == (0.0, 1)
    book.gap(-10, 10)
    book.gap(3599, 9000)
    assert book.value("history_gaps") == (2.0, 1)
    assert "2026-01-01T11:59:50Z to 2026-01-01T12:00:10Z" in book.measure("history_gaps").measurement.details


@pytest.mark.parametrize(
    ("said", "judgement"),
    [
        ({"maximum": 0.25}, Judgement.PASSED),
        ({"maximum": 0.24}, Judgement.FAILED),
        ({"maximum": None, "minimum": 0.25}, Judgement.PASSED),
        ({"maximum": None, "minimum": 0.26}, Judgement.FAILED),
        ({"maximum": 0.25, "min_samples": 4}, Judgement.PASSED),
        ({"maximum": 0.25, "min_samples": 5}, Judgement.NO_DATA),
    ],
)
def test_bounds_are_included_and_samples_needed(book: Book, said: dict[str, float], judgement: Judgement) -> None:
    for outcome in ("success", "success", "success", "failure"):
        book.ended(outcome)
    assert book.measure("failure_rate", **said).judgement is judgement


def test_another_pool_is_not_looked_at(book: Book) -> None:
    book.ended("failure")
    book.pool = "other"
    book.ended("success")
    assert book.value("success_rate") == (0.0, 1)
