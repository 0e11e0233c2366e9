"""What was held and what stood idle, recomputed from the event stream."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_allocator.gate import Judgement
from tests.gate.book import Book

MB, RAM, CORES, SLOTS = 1000, 500, 4, 3


def pool(book: Book, seconds: float = -100, *, slots: int = SLOTS) -> None:
    """One node with two GPUs, each served."""
    book.event("node", "n1", seconds, cores=CORES, ram_mb=RAM, devices=2, gpu_memory_mb=f"gpu_0:{MB} gpu_1:{MB}")
    for device in ("gpu_0", "gpu_1"):
        book.event("worker", f"w.{device}", seconds, device=f"n1/{device}", slots=slots)


def grant(book: Book, name: str, seconds: float, gpu: int, cores: str = "", ram: int = 0, **fields: Any) -> None:
    """One grant of a task."""
    shape = f"{gpu}:{len(cores.split(',')) if cores else 0}:{ram}:t"
    place = {"device": "n1/gpu_0", "token": 1, **fields}
    book.event("granted", name, seconds, shape=shape, cores=cores, **place)


def test_what_fits_is_no_oversubscription(book: Book) -> None:
    pool(book)
    grant(book, "a1", 1, 600, "0,1", 250)
    grant(book, "a2", 2, 400, "2,3", 250)
    book.event("released", "a1", 3, device="n1/gpu_0", token=1, outcome="success")
    grant(book, "a3", 3, 600, "0,1", 250)
    grant(book, "a4", 4, 1000, device="n1/gpu_1")
    assert book.value("oversubscription") == (0.0, 4)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"gpu": 401}, "1001 MB of 1000 MB held"),
        ({"gpu": 1, "ram": 251, "device": "n1/gpu_1"}, "501 MB of 500 MB RAM held"),
        ({"gpu": 1, "cores": "1", "device": "n1/gpu_1"}, "cores 1 held twice"),
        ({"gpu": 1, "cores": "4,5,6", "device": "n1/gpu_1"}, "5 of 4 cores held"),
    ],
)
def test_what_does_not_fit_is_counted_and_told(book: Book, second: dict[str, Any], said: str) -> None:
    pool(book)
    grant(book, "a1", 1, 600, "0,1", 250)
    grant(book, "a2", 2, **second)
    result = book.measure("oversubscription")
    assert (result.value, result.measurement.samples, result.judgement) == (1.0, 2, Judgement.FAILED)
    assert said in result.measurement.details[0] and "a2" in result.measurement.details[0]
    other = "n1/gpu_0" if "device" in second else "n1/gpu_1"
    assert book.value("oversubscription", device=other)[0] == 0.0


def test_one_on_several_gpus_holds_memory_on_each_and_cores_once(book: Book) -> None:
    pool(book)
    both = {"device": "n1/gpu_0", "token": 1, "devices": "n1/gpu_0 n1/gpu_1"}
    book.event("granted", "a1", 1, shape="600:2:250:m:2", cores="0,1", **both)
    grant(book, "a2", 2, 400, "2,3", 250, device="n1/gpu_1")
    assert book.value("oversubscription") == (0.0, 2)
    book.event("released", "a1", 3, device="n1/gpu_0", token=1, outcome="released")
    book.event("granted", "a3", 4, shape="601:1:0:m:2", cores="0", **both)
    result = book.measure("oversubscription")
    assert result.value == 1.0
    assert "a3 on n1/gpu_0: 1001 MB of 1000 MB of n1/gpu_1 held" in result.measurement.details[0]


def test_slots(book: Book) -> None:
    pool(book, slots=1)
    grant(book, "a1", 1, 1)
    grant(book, "a2", 2, 1)
    assert book.measure("oversubscription").measurement.details == ("granted a2 on n1/gpu_0: 2 tasks in 1 slots",)


def test_what_was_held_when_the_window_began_counts(book: Book) -> None:
    pool(book, -9000)
    grant(book, "a1", -5000, 600)
    book.allocation("a1", submitted_at=-5000, ended_at=None, state="running")
    grant(book, "a0", -6000, 600)
    book.event("released", "a0", -5500, device="n1/gpu_0", outcome="success")
    book.allocation("a0", submitted_at=-6000, ended_at=-5500, outcome="success")
    grant(book, "a2", 2, 400)
    assert book.value("oversubscription") == (0.0, 1)
    grant(book, "a3", 3, 1)
    assert book.value("oversubscription") == (1.0, 2)


@pytest.mark.parametrize(
    "what", ["released", "cancelled", "expired", "parked", "withdrawn", "requeued", "lost", "grown"]
)
def test_every_way_to_give_back(book: Book, what: str) -> None:
    pool(book)
    grant(book, "a1", 1, 1000, "0,1,2,3", 500)
    book.event(what, "a1", 2, again=0)
    grant(book, "a2", 2, 1000, "0,1,2,3", 500)
    assert book.value("oversubscription") == (0.0, 2)


def test_a_worker_takes_back_what_it_runs(book: Book) -> None:
    """It was granted elsewhere meanwhile: that grant is void."""
    pool(book)
    grant(book, "a1", 1, 600, "0", token=1)
    book.event("lost", "a1", 2, device="n1/gpu_0", token=1, again=1)
    grant(book, "a1", 2, 600, "0", token=2, device="n1/gpu_1")
    book.event("reclaimed", "a1", 3, device="n1/gpu_0", token=1)
    grant(book, "a2", 4, 600, "0", token=3, device="n1/gpu_1")
    assert book.value("oversubscription") == (0.0, 4)
    grant(book, "a3", 5, 600, token=4)
    assert book.value("oversubscription") == (1.0, 5)


def test_a_node_that_shrinks_is_not_oversubscribed_but_a_grant_on_it_is(book: Book) -> None:
    pool(book)
    grant(book, "a1", 1, 800)
    book.event("node", "n1", 2, cores=CORES, ram_mb=RAM, devices=1, gpu_memory_mb="gpu_0:500")
    assert book.value("oversubscription") == (0.0, 1)
    grant(book, "a2", 3, 1)
    assert book.value("oversubscription") == (1.0, 2)


def test_after_another_server_the_recount_begins_anew(book: Book) -> None:
    pool(book)
    grant(book, "a1", 1, 800)  # the old server's last write, which the new one does not know
    book.event("epoch", "", 2, run="x")
    grant(book, "a2", 3, 800)
    assert book.value("oversubscription") == (0.0, 2)


def test_without_events_nothing_is_said(book: Book) -> None:
    pool(book)
    grant(book, "a1", 1, 800)
    book.gap(5, 6)
    for kind in ("oversubscription", "idle_gap", "idle_share"):
        result = book.measure(kind)
        assert (result.value, result.judgement) == (None, Judgement.NO_DATA)
        assert "events of this time are missing" in result.reason


def test_what_no_event_told_is_said_to_be_unknown(book: Book) -> None:
    grant(book, "a1", 1, 800)
    details = book.measure("oversubscription").measurement.details
    assert details == (
        "not known, so not checked: RAM and cores of n1",
        "not known, so not checked: memory of n1/gpu_0",
    )


def test_idle_time_is_time_with_room_for_what_waits(book: Book) -> None:
    pool(book)
    book.allocation("a1", submitted_at=600, ended_at=None, state="waiting")
    grant(book, "big", 0, 900)
    grant(book, "other", 0, 900, device="n1/gpu_1", token=2)
    book.event("waiting", "a1", 600, shape="1000:1:0:t")
    book.event("released", "big", 1000, device="n1/gpu_0")  # from here on gpu_0 has room
    book.event("released", "other", 1100, device="n1/gpu_1")  # and from here on gpu_1, too
    book.event("granted", "a1", 1200, device="n1/gpu_0", shape="1000:1:0:t", token=3)
    result = book.measure("idle_gap")
    assert (result.value, result.measurement.samples) == (300.0, 9 - 3)
    assert result.measurement.details == ("n1/gpu_0: 200.0 s", "n1/gpu_1: 100.0 s")
    assert book.value("idle_gap", device="*/gpu_1")[0] == 100.0
    assert book.value("idle_gap", task="other")[0] == 0.0
    assert book.value("idle_share")[0] == pytest.approx(300 / 7200)


@pytest.mark.parametrize(
    ("what", "name", "fields"),
    [
        ("cordoned", "n1", {}),
        ("draining", "n1/gpu_0", {}),
        ("closing", "w.gpu_0", {"device": "n1/gpu_0"}),
        ("worker_lost", "w.gpu_0", {"device": "n1/gpu_0"}),
        ("node_lost", "n1", {}),
        ("cancelled", "a1", {}),
        ("held", "a1", {}),
        ("paused", "", {"by": "operator"}),
    ],
)
def test_idle_time_ends_with_the_room_or_the_task(book: Book, what: str, name: str, fields: dict[str, Any]) -> None:
    pool(book)
    grant(book, "full", 0, 1000, device="n1/gpu_1")
    book.event("waiting", "a1", 100, shape="1000:1:0:t")
    book.event(what, name, 160, **fields)
    assert book.value("idle_gap")[0] == 60.0
    if what == "held":
        book.event("unheld", "a1", 200)
        book.event("cancelled", "a1", 210)
        assert book.value("idle_gap")[0] == 70.0


def test_a_pause_of_the_ledgers_own_is_idle_time(book: Book) -> None:
    pool(book)
    book.event("waiting", "a1", 100, shape="1000:1:0:t")
    book.event("paused", "", 110, until=1)
    book.event("resumed", "", 170)
    book.event("cancelled", "a1", 170)
    assert book.value("idle_gap")[0] == 2 * 70.0


def test_what_was_undone_is_back(book: Book) -> None:
    """Its shape is that of its row: its first event was long before."""
    pool(book)
    for name, to in (("a1", "waiting"), ("a2", "on_hold"), ("a3", "delayed")):
        book.allocation(name, submitted_at=-9000, ended_at=None, gpu_memory_mb=1000, cpu_cores=4, ram_mb=0)
        book.event("restored", name, 100, to=to)
    grant(book, "full", 100, 1000, device="n1/gpu_1")
    book.event("cancelled", "a1", 130)
    assert book.value("idle_gap")[0] == 30.0
    book.event("restored", "a4", 200, to="running")
    grant(book, "a4", 200, 1000, "0,1,2,3", token=9)
    book.event("unheld", "a2", 200)
    assert book.value("idle_gap")[0] == 30.0
    book.event("released", "a4", 300)
    book.event("cancelled", "a2", 310)
    assert book.value("idle_gap")[0] == 40.0


def test_cpu_work_needs_the_pseudo_device(book: Book) -> None:
    pool(book)
    book.event("waiting", "a1", 100, shape="0:1:0:t")
    assert book.value("idle_gap")[0] == 0.0
    book.event("worker", "w.cpu", 3500, device="n1/cpu", slots=1)
    assert book.value("idle_gap")[0] == 100.0


# --- against a brute-force recount

OPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.sampled_from([100, 400, 700])), max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ops=OPS)
def test_oversubscription_as_a_brute_force_recount_finds_it(ops: list[tuple[int, int, int]], tmp_path: Path) -> None:
    """Grants and give-backs at random: after each grant, add up every interval that holds something."""
    book = Book(f"sqlite:///{tmp_path / 'history.sqlite3'}", f"pool-{uuid.uuid4().hex[:8]}")
    pool(book, slots=100)
    intervals: list[list[float]] = []  # device, memory, core, from, to
    live: dict[int, list[float]] = {}
    for second, (who, device, memory) in enumerate(ops):
        if who in live:
            live.pop(who)[4] = second
            book.event(random.Random(second).choice(["released", "cancelled", "withdrawn"]), f"a{who}", second)
        else:
            live[who] = [device, memory, who % 3, second, float("inf")]
            intervals.append(live[who])
            grant(book, f"a{who}", second, memory, str(who % 3), device=f"n1/gpu_{device}", token=second)
    broken = 0
    for device, _, core, begun, _ in intervals:
        there = [i for i in intervals if i[3] <= begun < i[4]]
        broken += sum(i[1] for i in there if i[0] == device) > MB or sum(i[2] == core for i in there) > 1
    assert book.value("oversubscription") == (float(broken), len(intervals))
    book.close()
