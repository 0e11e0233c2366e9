"""The overview against a real ledger: what workers measured, and who waits for what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_allocator.ledger import Beat, keys
from celery_allocator.model import Kind, RamUse, Requirements, TaskUse, Withheld, WorkerUse
from celery_allocator.overview import Bar, Match, explain, read_overview, read_waiting
from tests.support.ledger_pool import LEASE_S, LedgerPool

USE = WorkerUse(0.0, 5000, 3000, 0.5, 60, 200.0, 9000, 4000, (TaskUse("a1", 3000, 1000),))


def beat(cluster: LedgerPool, use: WorkerUse | None, incarnation: str = "one") -> Beat:
    return cluster.ledger.heartbeat("w.n1.gpu_0", incarnation, LEASE_S, use)


def measured(cluster: LedgerPool) -> WorkerUse | None:
    return next(worker.use for worker in cluster.ledger.snapshot().workers if worker.worker == "w.n1.gpu_0")


def test_what_a_worker_measured_is_seen_until_it_leaves(cluster: LedgerPool) -> None:
    cluster.node()
    assert measured(cluster) is None
    beat(cluster, USE)
    first = cluster.at
    assert measured(cluster) == replace(USE, at=first)
    cluster.at += 5
    beat(cluster, None)  # nothing newer: the old one stays, with its time
    assert measured(cluster) == replace(USE, at=first)
    beat(cluster, replace(USE, ram_used_mb=1), incarnation="another")  # not registered: not believed
    assert measured(cluster) == replace(USE, at=first)
    beat(cluster, replace(USE, gpu_memory_ours_mb=None))
    assert measured(cluster) == replace(USE, gpu_memory_ours_mb=None, at=cluster.at)
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    cluster.worker("n1", "gpu_0", "two")
    assert measured(cluster) is None


@pytest.mark.parametrize("junk", ["", "{", "3", '{"ram_used_mb": "x"}', "\xff"])
def test_a_measurement_that_cannot_be_read_is_none_and_no_damage(cluster: LedgerPool, junk: str) -> None:
    cluster.node()
    beat(cluster, USE)
    cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "worker", "w.n1.gpu_0"), "use", junk)
    assert measured(cluster) is None
    assert cluster.ledger.verify() == []


def test_bars_cells_and_what_runs(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=4, ram=64_000)
    running = cluster.running(4_000, 2, 2_000)
    beat(cluster, USE)
    seen = read_overview(cluster.ledger)
    (node,) = seen.nodes
    assert node.devices[0].memory == Bar(10_000, 4_000, 3_000, 2_000)
    assert node.devices[0].slots == Bar(4, 1)
    assert node.ram == Bar(64_000, 2_000, 4_000, 5_000)
    assert [core.allocation_id for core in node.cores] == ["a1", "a1", None, None]
    assert [(one.allocation.allocation_id, one.use) for one in seen.running] == [("a1", USE.tasks[0])]
    assert running.token == seen.running[0].allocation.token


def test_the_line_in_pages_and_what_is_looked_for(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=4)
    cluster.running(10_000, 1)
    for number in range(7):
        cluster.submit(1_000 + number, 1, task_name="Render" if number % 2 else "infer")
    state = cluster.ledger.snapshot()
    page = read_waiting(cluster.ledger, state, limit=3, offset=2)
    assert (page.total, page.matched) == (7, 7)
    assert [row.allocation.queue_position for row in page.rows] == [3, 4, 5]
    assert {row.reason.text for row in page.rows} == {
        f"Lacks GPU memory (MB) on all of 1 ({1_000 + n} needed, 0 free at most)." for n in (2, 3, 4)
    }
    found = read_waiting(cluster.ledger, state, limit=2, offset=1, match=Match(text="rEnD"))
    assert (found.total, found.matched) == (7, 3)
    assert [row.allocation.queue_position for row in found.rows] == [4, 6]
    assert read_waiting(cluster.ledger, state, match=Match(tenant="nobody")).rows == ()
    assert read_waiting(cluster.ledger, state, match=Match(text="task of a3")).matched == 1


def test_who_is_in_the_way_and_until_when(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 4_000), cores=8)
    done = cluster.running(100, 1)
    cluster.at += 20
    cluster.ledger.release(done.allocation_id, done.token, "success")  # "work" takes 20 s
    cluster.running(9_000, 2)
    cluster.running(4_000, 5)
    cluster.at += 5
    waiting = cluster.submit(6_000, 1).allocation
    found = explain(cluster.ledger, waiting)
    assert found.reason.code == "room"
    assert [(place.device, dict(place.lacks)) for place in found.places] == [
        ("n1/gpu_0", {"gpu_memory_mb": (6_000, 1_000)}),
        ("n1/gpu_1", {"gpu_memory_mb": (6_000, 0)}),
    ]
    ((holder,), _) = (place.holders for place in found.places)
    assert holder.allocation.allocation_id == "a2"
    assert holder.ends_at == pytest.approx(cluster.at + 15, abs=1), "run times are known to within 5 %"
    # Cores are the node's: who holds some of them on the other device is in the way, too.
    found = explain(cluster.ledger, cluster.submit(0, 2).allocation)
    assert [(place.device, dict(place.lacks)) for place in found.places] == [("n1/cpu", {"cpu_cores": (2, 1)})]
    assert [holder.allocation.allocation_id for holder in found.places[0].holders] == ["a2", "a3"]
    cluster.at += 30
    assert {holder.ends_at for place in explain(cluster.ledger, waiting).places for holder in place.holders} == {None}


def test_an_end_is_what_was_said_a_ttl_or_what_nine_of_ten_take(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    for seconds in (2, 2, 2, 20, 2):
        done = cluster.running(100, 1)
        cluster.at += seconds
        cluster.ledger.release(done.allocation_id, done.token, "success")
    cluster.running(1_000, 1, id="usual")
    cluster.by_hand(1_000, 1, id="hand", ttl_s=30)
    short = Requirements(1_000, 1, expected_runtime_s=3)
    cluster.ledger.submit("short", "by hand", "work", short, kind=Kind.MANUAL, ttl_s=30)
    needs = Requirements(1_000, 1, expected_runtime_s=1)
    cluster.start(cluster.ledger.submit("said", "t", "work", needs, message=b",}").allocation)
    waiting = cluster.submit(10_000, 1).allocation

    def ends() -> dict[str, float | None]:
        (place,) = explain(cluster.ledger, waiting).places
        return {h.allocation.allocation_id: h.ends_at and h.ends_at - cluster.at for h in place.holders}

    assert ends() == {"usual": pytest.approx(2, rel=0.06), "hand": 30, "short": 3, "said": 1}
    cluster.at += 4
    # Longer than most: as the longest.
    assert ends() == {"usual": pytest.approx(16, rel=0.1), "hand": 26, "short": 26, "said": None}


def test_what_does_not_wait_for_room_is_told_by_its_state(cluster: LedgerPool) -> None:
    cluster.node()
    delayed = cluster.submit(1, eta_at=cluster.at + 60).allocation
    running = cluster.running(1)
    cluster.submit(10_000)
    cluster.ledger.hold("a3")
    told = [explain(cluster.ledger, a).reason for a in (delayed, running, cluster.ledger.get("a3"))]
    assert [reason.code for reason in told] == ["delayed", "running", "on_hold"]
    assert told[1].text == "It runs on n1/gpu_0."


def test_what_is_looked_for_is_found_wherever_it_stands_in_line(
    cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a search by hand, over stretches that are shorter than the line."""
    monkeypatch.setattr("celery_allocator.ledger.client._STRETCH", 7)
    cluster.node(gpus=(10_000,), cores=4)
    cluster.running(10_000, 1)
    for number in range(40):
        cluster.submit(5_000, 1, priority=number % 3, task_name=f"Work.{number % 4}", task_id=f"T{number}")
    line = cluster.ledger.queue(100)
    for text in ("", "WORK.2", "t3", "a17", "%", "no such"):
        meant = [a for a in line if Match(text)(a)]
        for limit, offset in ((3, 0), (5, 4), (100, 0), (10, 35)):
            total, matched, found = cluster.ledger.search(text, "", limit, offset)
            assert (total, matched) == (40, len(meant))
            assert list(found) == meant[offset : offset + limit]


def test_a_worker_that_is_closing_has_no_room_for_what_waits(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    cluster.running(4_000, 1)
    cluster.ledger.close_worker("w.n1.gpu_0", "one")
    waiting = cluster.submit(1_000, 1).allocation
    assert cluster.device("n1/gpu_0").closing
    assert explain(cluster.ledger, waiting).reason.code == "no_device"
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    cluster.worker("n1", "gpu_0", "two")
    assert not cluster.device("n1/gpu_0").closing


def test_what_is_allocated_by_hand_is_not_foreign(cluster: LedgerPool) -> None:
    """Its processes are no worker's; up to what it was promised they are taken for ours."""
    cluster.node(gpus=(80_000,), cores=8, ram=64_000)
    cluster.by_hand(20_000, 1, 8_000)
    beat(
        cluster,
        replace(USE, gpu_memory_used_mb=26_000, gpu_memory_ours_mb=1_000, ram_used_mb=12_000, ram_ours_mb=1_000),
    )
    (node,) = read_overview(cluster.ledger).nodes
    assert node.devices[0].memory == Bar(80_000, 20_000, 21_000, 5_000)
    assert node.ram == Bar(64_000, 8_000, 9_000, 3_000)


def test_bars_show_what_is_really_withheld(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), ram=64_000)
    cluster.running(4_000, 1)
    beat(cluster, replace(USE, gpu_memory_used_mb=9_000, gpu_memory_ours_mb=5_000, tasks=()))
    withheld = Withheld(4_000, 700, 500)
    cluster.ledger.withhold("w.n1.gpu_0", "one", "n1/gpu_0", withheld, RamUse(9_000, 1_000))
    (node,) = read_overview(cluster.ledger).nodes
    bar = node.devices[0].memory
    assert bar == Bar(10_000, 4_000, 5_000, 4_000, leftover=700, excess=500, withheld=5_200)
    assert bar.free == node.devices[0].device.memory_free_mb == 800
    assert (bar.within, bar.unused, bar.overused) == (3_800, 200, 500)
    assert bar.as_dict()["withheld"] == 5_200
    assert node.ram.withheld == node.node.ram_withheld_mb == 8_000
    # Where process ids are hidden, all that is used beyond the claims is drawn as foreign, as it is withheld.
    beat(cluster, replace(USE, gpu_memory_used_mb=9_000, gpu_memory_ours_mb=None, tasks=()))
    cluster.ledger.withhold("w.n1.gpu_0", "one", "n1/gpu_0", Withheld(5_000, pids_hidden=True), None)
    (node,) = read_overview(cluster.ledger).nodes
    bar = node.devices[0].memory
    assert (bar.used, bar.foreign, bar.within, bar.free) == (4_000, 5_000, 4_000, 1_000)


def test_a_task_of_another_worker_that_holds_this_gpu_too_is_not_foreign(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000))
    cluster.running(8_000, 1, gpu_count=2)
    seen = replace(USE, gpu_memory_used_mb=7_000, gpu_memory_ours_mb=0, tasks=())
    cluster.ledger.heartbeat("w.n1.gpu_1", "one", LEASE_S, seen)
    (node,) = read_overview(cluster.ledger).nodes
    other = next(view for view in node.devices if view.device.device_id == "gpu_1")
    assert other.memory == Bar(10_000, 8_000, 7_000, 0)


def test_what_was_measured_long_ago_is_not_shown(cluster: LedgerPool) -> None:
    cluster.node()
    beat(cluster, USE)
    for _ in range(13):
        cluster.at += 10
        beat(cluster, None)
    assert measured(cluster) is not None
    assert read_overview(cluster.ledger).devices[0].use is None
