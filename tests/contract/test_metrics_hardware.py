"""What is counted and measured of the hardware: what is withheld, closed, overused, grown, and loaded already."""

from __future__ import annotations

import pytest

from celery_allocator.metrics.counting import Counting
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.model import Kind, RamUse, Shape, Withheld, WorkerUse
from celery_allocator.operations import Actor, Cordon, Drain, Operator
from celery_allocator.overview import FAULTS, fault
from celery_allocator.plugin import health
from tests.contract.test_metrics import MB, Watched, values
from tests.support.ledger_pool import LEASE_S, LedgerPool

GPU = ("n1", "gpu_0", "GPU-n1-0")


@pytest.fixture
def watched(cluster: LedgerPool) -> Watched:
    return Watched(cluster)


def test_what_is_withheld_is_told_by_why(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000, 8_000), ram=64_000)
    pool.ledger.withhold("w.n1.gpu_0", "one", "n1/gpu_0", Withheld(3_000, 200, 100, pids_hidden=True), RamUse(900, 0))
    found = values(watched.look())
    withheld = {name[-1]: n for name, n in found.items() if name[:4] == ("gpu_memory_withheld_bytes", *GPU)}
    assert withheld == {"foreign": 3_000 * MB, "leftover": 200 * MB, "overuse": 100 * MB}
    assert sum(withheld.values()) == pool.device("n1/gpu_0").withheld_mb * MB
    assert found[("gpu_process_ids_hidden", *GPU)] == 1
    assert found["ram_withheld_bytes", "n1", "foreign"] == 900 * MB
    assert ("ram_withheld_bytes", "n1", "leftover") not in found
    other = ("n1", "gpu_1", "GPU-n1-1")
    assert found[("gpu_memory_withheld_bytes", *other, "foreign")] == found[("gpu_process_ids_hidden", *other)] == 0
    assert ("gpu_memory_withheld_bytes", "n1", "cpu", "", "foreign") not in found


#: Reasons as a worker writes them, and what they count as.
REASONS = {
    health._LOST: "lost",
    f"{health._UNREADABLE}Unknown Error": "unreadable",
    "Xid 79: the GPU has fallen off the bus": "xid",
    "Xid 48: a double-bit ECC error; the driver asks for: GPU reset": "xid",
    "1 uncorrectable memory error": "memory",
    "3 uncorrectable memory errors": "memory",
    "bad memory could not be remapped": "memory",
    "the driver asks for: node reboot": "reset",
    "new fans on Tuesday": "other",
    "": "other",
}


@pytest.mark.parametrize(("reason", "expected"), REASONS.items())
def test_why_a_device_is_closed(watched: Watched, reason: str, expected: str) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    assert fault(pool.device("n1/gpu_0")) is None
    assert all(values(watched.look())[("device_closed", *GPU, name)] == 0 for name in FAULTS)
    command = Drain("n1/gpu_0") if reason else Cordon("n1/gpu_0")
    Operator(pool.ledger, Actor("worker:w1", "worker", reason), lambda _: None).run(command)
    found = values(watched.look())
    assert {name for name in FAULTS if found[("device_closed", *GPU, name)]} == {expected}


def test_what_is_wrong_now_is_one_of_these(watched: Watched) -> None:
    """Each text that a look at a GPU can yield is told as a fault, and none as an operator's reason."""
    fine = health.GpuHealth(0, rows_failed=False, rows_pending=False, recovery="", xids=())
    bad = health.GpuHealth(2, rows_failed=True, rows_pending=False, recovery="GPU reset", xids=(79,))
    news = health._news(fine, bad)
    assert len(news) == 4
    watched.pool.node(gpus=(10_000,))
    for text in news:
        Operator(watched.pool.ledger, Actor("w", "worker", text), lambda _: None).run(Drain("n1/gpu_0"))
        assert fault(watched.pool.device("n1/gpu_0")) in set(FAULTS) - {"other"}, text


def test_what_is_done_about_overuse_is_counted(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    running = pool.running(1_000, 1, 500)
    for resource, action in (("gpu_memory_mb", "warn"), ("ram_mb", "warn"), ("ram_mb", "kill")):
        assert pool.ledger.note_overuse(running, resource, promised_mb=1, used_mb=2, action=action)
    assert watched.counter("overuse_actions_total") == {
        ("gpu_memory", "warn"): 1,
        ("ram", "warn"): 1,
        ("ram", "kill"): 1,
    }
    # Known before the first, so that its increase is seen.
    assert watched.tallies.counters()["overuse_actions_total"]["gpu_memory", "kill"] == 0


def test_children_that_were_recycled_are_counted_by_their_worker(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000, 10_000))
    watched.look()
    assert watched.counter("children_recycled_total") == {}, "nobody has told"
    for so_far in (0, 2):
        pool.ledger.heartbeat("w.n1.gpu_0", "one", LEASE_S, WorkerUse(0.0, children_recycled=so_far))
        watched.look()
        assert watched.tallies.counters()["children_recycled_total"] == {GPU: so_far}


def test_claims_that_grow_are_counted_where_memory_ran_out(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    watched.look()
    assert watched.tallies.counters()["claims_grown_total"] == {("n1", "gpu_0"): 0}
    running = pool.running(2_000)
    assert pool.ledger.grow(running.allocation_id, running.token, 1.5, 2).done
    assert watched.counter("claims_grown_total") == {("n1", "gpu_0"): 1}
    assert watched.counter("regrants_total") == {("grown",): 1}


def test_shares_that_wait_have_their_own_series(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000, 10_000), slots=4)
    for gpu in range(2):
        pool.submit(exclusive=True, id=f"all{gpu}")
    pool.submit(share=0.25)
    pool.submit(share=0.25, gpu_model="simulated")
    pool.submit(exclusive=True, gpu_count=2)
    pool.submit(4_000, gpu_count=2)
    found = {name[1:]: n for name, n in values(watched.look()).items() if name[0] == "waiting_by_shape" and n}
    assert found == {
        ("0", "0.25", "1", "0", "task"): 2,
        ("0", "2", "1", "0", "task"): 1,
        ("8000", "0", "1", "0", "task"): 1,
    }
    assert Shape.parse("0:1:0:t:1:s=250").share == 250 and Shape(1, 1, 1, Kind.TASK).share == 0


def test_grants_by_affinity() -> None:
    tallies = Tallies()
    counting = Counting(tallies)
    assert tallies.counters()["affinity_grants_total"] == {("hit",): 0, ("miss",): 0}
    for number, loaded in enumerate(("hit", "hit", "miss", "", "odd")):
        fields = {"event": "granted", "id": f"a{number}", "at": "1000", "device": "n1/gpu_0", "warm": loaded}
        counting.feed([(f"{number}-0", fields if loaded else {**fields, "warm": ""})])
    assert tallies.counters()["affinity_grants_total"] == {("hit",): 2, ("miss",): 1, ("other",): 1}
