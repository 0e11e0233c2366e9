"""What is counted and measured of a real ledger, on a clock that stands still unless it is moved."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from celery_allocator.errors import HistoryUnavailable, StaleTokenError
from celery_allocator.ledger import REFUSALS, Options, keys
from celery_allocator.metrics.counting import Counting
from celery_allocator.metrics.fairness import NAMELESS, TENANTS
from celery_allocator.metrics.following import BATCH, Follower
from celery_allocator.metrics.gauges import SHAPES, gauges
from celery_allocator.metrics.looking import Look, Lookout, look
from celery_allocator.metrics.recorded import Recorded, RecordedWatch
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.metrics.value import OTHER
from celery_allocator.model import Kind, Quota, Shape, TaskUse, WorkerUse
from celery_allocator.settings import Settings
from tests.support.ledger_pool import LEASE_S, LedgerPool

MB = 2**20


class Watched:
    """A pool, and a follower that has been there from its beginning."""

    def __init__(self, cluster: LedgerPool) -> None:
        self.pool = cluster
        self.tallies = Tallies()
        self.follower = Follower(lambda: cluster.ledger, self.tallies)
        self.lookout = Lookout(lambda: cluster.ledger, self.tallies)
        self.follower.step(cluster.ledger)

    def catch_up(self) -> None:
        while self.follower.step(self.pool.ledger) == BATCH:
            pass

    def counter(self, name: str) -> dict[tuple[str, ...], float]:
        """The series that are not 0."""
        self.catch_up()
        return {labels: value for labels, value in self.tallies.counters()[name].items() if value}

    def observed(self, name: str) -> dict[float, int]:
        """How many observations each bucket has, by its upper bound."""
        self.catch_up()
        found = self.tallies.distributions()[name]
        return {bound: n for bound, n in zip((*found.bounds, float("inf")), found.counts, strict=True) if n}

    def look(self) -> Look:
        return self.lookout.take(self.pool.ledger)


@pytest.fixture
def watched(cluster: LedgerPool) -> Watched:
    return Watched(cluster)


def values(seen: Look, recorded: Recorded | None = None) -> dict[tuple[str, ...], float]:
    return {(value.name, *value.labels): value.value for value in gauges(seen, recorded)}


# --- the line


def test_the_line_in_figures(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=4)
    assert cluster.ledger.line().since is None
    cluster.running(10_000, 1)
    cluster.at += 10
    first = cluster.at
    cluster.submit(2_000, 1, id="first")
    cluster.at += 10
    cluster.submit(2_000, 1, priority=7, id="urgent")
    cluster.at += 10
    for number in range(3):
        cluster.submit(3_000, 1, priority=-3, id=f"late{number}")
    line = cluster.ledger.line()
    small, large = Shape(2_000, 1, 0, Kind.TASK), Shape(3_000, 1, 0, Kind.TASK)
    assert (line.at, line.waiting, line.since) == (cluster.at, 5, first)
    assert line.shapes == {small: 2, large: 3}
    assert cluster.ledger.line(shapes=1).shapes == {small: 2}
    cluster.ledger.cancel("first")
    assert cluster.ledger.line().since == first + 10
    cluster.submit(2_000, 1, id="delayed", eta_at=cluster.at + 100)
    cluster.ledger.cancel("urgent")
    cluster.at += 100
    cluster.ledger.tick()
    assert cluster.ledger.line().since == first + 20
    for number in range(3):
        cluster.ledger.cancel(f"late{number}")
    assert cluster.ledger.line().since == cluster.at  # its ETA, not its submit


def test_refused_deliveries_are_counted_by_reason(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    granted = pool.submit(1_000).allocation
    with pytest.raises(StaleTokenError):
        pool.start(granted, incarnation="another")
    running = pool.start(granted)
    pool.start(granted)  # the same delivery once more: its reply was lost
    waits = pool.submit(10_000).allocation
    for allocation_id, token in [
        (running.allocation_id, running.token),
        (running.allocation_id, running.token - 1),
        ("never was", 1),
        (waits.allocation_id, 1),
    ]:
        with pytest.raises(StaleTokenError):
            pool.ledger.start(allocation_id, token, "w.n1.gpu_0", "one", "another delivery", False)
    assert pool.ledger.line().rejected == dict.fromkeys(REFUSALS, 1)
    watched.look()
    assert watched.counter("deliveries_rejected_total") == {(reason,): 1 for reason in REFUSALS}


# --- what is counted


def test_counters_are_the_streams_entries(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,), cores=4)
    done = pool.running(4_000, task_name="a")
    failed = pool.running(4_000, task_name="b")
    pool.ledger.release(done.allocation_id, done.token, "success")
    pool.ledger.release(failed.allocation_id, failed.token, "failure", error="OutOfMemoryError")
    wrong = pool.running(1_000)
    pool.ledger.release(wrong.allocation_id, wrong.token, "failure", error="ValueError")
    odd = pool.running(1_000)
    pool.ledger.release(odd.allocation_id, odd.token, "whatever I like")
    pool.by_hand(0, 1)
    pool.submit(9_000)
    pool.ledger.cancel(pool.submit(10_000).allocation.allocation_id)
    assert watched.counter("events_total") == {(name,): n for name, n in Counter(pool.happened()).items()}
    assert watched.counter("grants_total") == {("n1", "gpu_0"): 5, ("n1", "cpu"): 1}
    ended = {("success",): 1, ("failure",): 2, ("cancelled",): 1, ("other",): 1}
    assert watched.counter("releases_total") == ended
    assert watched.counter("out_of_memory_total") == {("n1", "gpu_0"): 1}
    # What has ended is not remembered.
    assert watched.follower.counting.remembered == 2


def test_grants_to_what_has_an_affinity_are_counted_by_whether_it_was_loaded(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,), slots=8)
    pool.running(1_000)
    for word in ("sdxl", "sdxl", "llama", "sdxl"):
        pool.running(1_000, affinity=word)
    assert watched.counter("affinity_grants_total") == {("hit",): 2, ("miss",): 2}


def test_what_is_granted_again_is_counted_by_why(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    back = pool.running(1_000, repeatable=True)
    pool.ledger.release(back.allocation_id, back.token, "requeue")
    pool.submit(1_000)
    pool.at += 20
    pool.ledger.tick()
    pool.ledger.cordon("n1/gpu_0", drain=True)
    assert watched.counter("regrants_total") == {("requeued",): 1}
    assert watched.counter("republished_total") == {(): 2}
    pool.ledger.uncordon("n1/gpu_0")
    assert watched.counter("regrants_total") == {("requeued",): 1, ("withdrawn",): 2}
    lost = pool.running(1_000, repeatable=True)
    pool.ledger.unregister_worker("w.n1.gpu_0", "one")
    pool.worker("n1", "gpu_0", "two")
    assert watched.counter("regrants_total")["lost",] == 1
    assert pool.ledger.get(lost.allocation_id).losses == 1
    pool.at += LEASE_S + 1
    pool.ledger.tick()
    assert watched.counter("leases_expired_total") == {("worker",): 2, ("node",): 1}


def test_waits_dispatch_and_estimates(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    first = pool.submit(10_000).allocation
    pool.at += 0.02  # on its way to the worker
    first = pool.start(first)
    pool.at += 40
    pool.ledger.release(first.allocation_id, first.token, "success")
    blocks = pool.running(10_000)
    waits = pool.submit(10_000)
    # A tenth is the width of a bucket of run times.
    assert waits.allocation.estimated_start_at == pytest.approx(pool.at + 40, abs=4)
    told = pool.ledger.newest_events(1)[0][1]
    assert (told["event"], int(told["estimate"])) == ("waiting", waits.allocation.estimated_start_at * 1000)
    pool.at += 50
    pool.ledger.release(blocks.allocation_id, blocks.token, "success")
    pool.start(pool.ledger.get(waits.allocation.allocation_id))
    assert watched.observed("queue_wait_seconds") == {0.01: 1, 0.05: 1, 60: 1}
    assert watched.observed("placement_latency_seconds") == {0.001: 2, 0.025: 1}
    assert watched.observed("estimate_error_seconds") == {15: 1}  # 50 s, and 40 s were told
    assert watched.tallies.distributions()["queue_wait_seconds"].total == pytest.approx(50.02)


def test_what_began_before_it_looked_is_counted_and_not_measured(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,))
    before = cluster.submit(1_000).allocation
    watched = Watched(cluster)
    cluster.at += 10
    running = cluster.start(before)
    cluster.ledger.release(running.allocation_id, running.token, "success")
    assert watched.counter("events_total") == {("started",): 1, ("released",): 1}
    assert watched.counter("releases_total") == {("success",): 1}
    assert watched.observed("queue_wait_seconds") == watched.observed("placement_latency_seconds") == {}


def test_entries_that_are_gone_unread_are_a_gap(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    pool.submit(1_000)
    watched.catch_up()
    assert watched.follower.counting.remembered == 1
    pool.submit(1_000)
    pool.submit(1_000)
    pool.ledger.client.xtrim(keys.key(pool.ledger.pool, "events"), maxlen=1, approximate=False)
    assert watched.counter("stream_gaps_total") == {(): 1}
    assert watched.follower.counting.remembered == 1  # whose end may have been in the gap is forgotten
    pool.submit(1_000)
    assert watched.counter("stream_gaps_total") == {(): 1}


def test_memory_is_bounded_and_forgotten_ends_are_still_counted() -> None:
    tallies = Tallies()
    counting = Counting(tallies, most=10)
    shape = {"shape": "1:1:1:t", "name": "n"}
    for number in range(50):
        counting.feed([(f"{number}-0", {"event": "waiting", "id": f"a{number}", "at": "1000", "new": "1", **shape})])
        counting.feed([(f"{number}-1", {"event": "node", "id": "n1", "at": "1000", "gpu_memory_mb": "gpu_0:1"})])
    assert counting.remembered == 10
    assert not counting._fold.states
    counting.feed([("99-0", {"event": "released", "id": "a0", "at": "2000", "outcome": "success"})])
    assert tallies.counters()["releases_total"]["success",] == 1


@pytest.mark.parametrize("junk", [{}, {"event": ""}, {"event": "granted"}, {"event": "x", "at": "y"}])
def test_damaged_entries_stop_nothing(junk: dict[str, str]) -> None:
    tallies = Tallies()
    Counting(tallies).feed([("1-0", junk), ("2-0", {"event": "audit", "at": "1"})])
    assert tallies.counters()["events_total"]["audit",] == 1


# --- what is looked at


def test_gauges_are_the_snapshot(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000, 8_000), cores=4, ram=64_000, slots=2)
    pool.running(4_000, 2, 2_000)
    pool.submit(1_000, 1, 1_000)
    pool.submit(0, 3, 0)
    use = WorkerUse(0.0, 5000, 3000, 0.5, 60, 200.0, 9000, 4000, (TaskUse("a1", 3000, 1000),))
    pool.ledger.heartbeat("w.n1.gpu_0", "one", LEASE_S, use)
    pool.ledger.cordon("n1/gpu_1")
    pool.at += 7
    found = values(watched.look())
    gpu0, gpu1 = ("n1", "gpu_0", "GPU-n1-0"), ("n1", "gpu_1", "GPU-n1-1")
    held = {d.device_id: len(d.allocations) for d in pool.ledger.snapshot().devices}
    expected = {
        ("gpu_memory_capacity_bytes", *gpu0): 10_000 * MB,
        ("gpu_memory_capacity_bytes", *gpu1): 8_000 * MB,
        ("gpu_memory_used_bytes", *gpu0): 3_000 * MB,
        ("gpu_memory_foreign_bytes", *gpu0): 2_000 * MB,
        ("gpu_utilization_ratio", *gpu0): 0.5,
        ("cpu_cores_capacity", "n1"): 4,
        ("cpu_cores_allocated", "n1"): 3,
        ("ram_capacity_bytes", "n1"): 64_000 * MB,
        ("ram_allocated_bytes", "n1"): 3_000 * MB,
        ("ram_used_bytes", "n1"): 4_000 * MB,
        ("ram_foreign_bytes", "n1"): 5_000 * MB,
        ("worker_slots_capacity", *gpu0, "q.n1.gpu_0"): 2,
        ("worker_slots_allocated", *gpu0, "q.n1.gpu_0"): held["gpu_0"],
        ("worker_slots_capacity", "n1", "cpu", "", "q.n1.cpu"): 2,
        ("device_state", *gpu0, "ready"): 1,
        ("device_state", *gpu1, "ready"): 0,
        ("device_state", *gpu1, "cordoned"): 1,
        ("workers", "n1"): 3,
        ("allocations", "waiting"): 1,
        ("allocations", "granted"): 1,
        ("allocations", "running"): 1,
        ("waiting_by_shape", "0", "0", "3", "0", "task"): 1,
        ("waiting_by_shape", *["other"] * 5): 0,
        ("oldest_waiting_age_seconds",): 7,
        ("granting_paused", "stopped"): 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert sum(found[("gpu_memory_allocated_bytes", *gpu)] for gpu in (gpu0, gpu1)) == 5_000 * MB
    # What is not measured is not told, and never as 0.
    assert ("gpu_memory_used_bytes", *gpu1) not in found
    assert ("gpu_memory_capacity_bytes", "n1", "cpu", "") not in found
    assert ("recorder_lag_seconds",) not in found
    pool.ledger.pause(stop=True)
    pool.at += LEASE_S + 1
    pool.ledger.tick()
    found = values(watched.look())
    assert found["granting_paused", "stopped"] == 1
    assert (found[("device_state", *gpu0, "offline")], found["workers", "n1"]) == (1, 0)


def test_the_shapes_that_have_a_series_are_capped(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,), slots=1)
    pool.running(10_000)
    for number in range(SHAPES + 10):
        for _ in range(2 if number == SHAPES + 9 else 1):
            pool.submit(100 + number)
    found = {name[1:]: n for name, n in values(watched.look()).items() if name[0] == "waiting_by_shape"}
    assert len(found) == SHAPES + 1
    assert found[str(100 + SHAPES + 9), "0", "1", "0", "task"] == 2
    assert found[("other",) * 5] == 10
    assert sum(found.values()) == SHAPES + 11


def test_tenants_are_told_as_the_ledger_has_them(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,), cores=8, ram=64_000, slots=2)
    pool.ledger.set_tenant("vision", Quota(2))
    pool.submit(4_000, 3, 2_000, tenant="vision")
    pool.submit(4_000, 1, 0)
    for _ in range(3):
        pool.submit(4_000, 1, 0, tenant="vision")
    found = values(watched.look())
    told = {state.name: state for state in pool.ledger.tenants()}
    assert set(told) == {"", "vision"} and told["vision"].waiting == 3
    for name, state in ((name or NAMELESS, state) for name, state in told.items()):
        assert {metric: found[f"tenant_{metric}", name] for metric in TOLD} == {
            "gpu_memory_held_bytes": state.gpu_memory_mb * MB,
            "cpu_cores_held": state.cpu_cores,
            "ram_held_bytes": state.ram_mb * MB,
            "allocations_held": state.tasks,
            "waiting": state.waiting,
            "share_ratio": state.share,
        }
        assert found["tenant_weight", name] == state.quota.weight
    assert found["tenant_share_ratio", "vision"] == pytest.approx(0.4 / 2)
    assert all(found[f"tenant_{metric}", "other"] == 0 for metric in TOLD)
    assert ("tenant_weight", "other") not in found


#: What is told of each tenant, and of the others together.
TOLD = ("gpu_memory_held_bytes", "cpu_cores_held", "ram_held_bytes", "allocations_held", "waiting", "share_ratio")


def test_the_tenants_that_have_a_series_are_capped(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,), slots=1)
    pool.running(10_000)
    names = [f"t{number:02}" for number in range(TENANTS + 5)]
    for name in [*names, names[-1], OTHER, OTHER, NAMELESS]:  # some call themselves as those are called
        pool.submit(1_000, tenant=name)
    found = {labels: n for (metric, *labels_), n in values(watched.look()).items() if metric == "tenant_waiting"
             for labels in labels_}  # fmt: skip
    assert len(found) == TENANTS + 1
    assert (found[names[-1]], found[NAMELESS], found[names[0]], found[OTHER]) == (2, 0, 1, 6 + 3)
    assert sum(found.values()) == TENANTS + 9


def test_what_is_kept_for_the_first_in_line(cluster: LedgerPool) -> None:
    watched = Watched(LedgerPool(cluster.ledger.client, cluster.ledger.pool, Options(max_bypass=1)))

    def kept() -> dict[str, float]:
        found = values(watched.look())
        states = {name[1]: value for name, value in found.items() if name[0] == "reservation"}
        assert set(states) == {"passed", "kept", "emptied"}
        return {name: value for name, value in states.items() if value} | {
            "age": found["reservation_age_seconds",],
            "passed": found["reservation_passed",] or states["passed"],
        }

    pool = watched.pool
    pool.node(gpus=(10_000,), slots=4)
    assert kept() == {"age": 0, "passed": 0}
    holds = pool.running(6_000, task_name="unknown")
    pool.submit(10_000, id="large")
    pool.at += 7
    pool.submit(1_000, id="small")  # passes it: nobody knows how long either runs
    found = kept()
    now = pool.ledger.reservation()
    assert now is not None and (now.allocation_id, now.device, now.passed) == ("large", None, 1)
    assert found == {"passed": 1, "age": pool.at - now.since}
    pool.submit(1_000, id="late")  # it has been passed as often as may be
    assert kept()["emptied"] == 1
    pool.ledger.release(holds.allocation_id, holds.token, "success")
    pool.ledger.release("small", None, "success")
    assert kept() == {"age": 0, "passed": 0}


def test_dates_are_scored_as_the_ledger_scores_them(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    known = pool.running(10_000)
    pool.at += 40
    pool.ledger.release(known.allocation_id, known.token, "success")
    assert not [name for name in values(watched.look()) if name[0] == "date_error_median_seconds"]
    for lasts in (50, 500):  # once by its second date, once after it
        blocks = pool.running(10_000)
        waits = pool.submit(10_000).allocation
        pool.at += lasts
        pool.ledger.release(blocks.allocation_id, blocks.token, "success")
        waits = pool.start(pool.ledger.get(waits.allocation_id))
        pool.ledger.release(waits.allocation_id, waits.token, "failure")
    told = pool.ledger.accuracy()
    found = values(watched.look())
    assert (told.scored, told.covered) == (2, 0.5)
    assert found["date_error_median_seconds", "dates"] == told.median_error_s
    assert found["date_error_median_seconds", "rule_of_thumb"] == told.thumb_error_s
    assert watched.counter("dates_scored_total") == {(): 2}
    assert watched.counter("dates_covered_total") == {(): 1}


def test_what_is_moved_is_no_date(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    known = pool.running(10_000)
    pool.at += 40
    pool.ledger.release(known.allocation_id, known.token, "success")
    blocks = pool.running(10_000)
    pool.submit(10_000, id="moved")
    pool.ledger.prioritize("moved", 5)
    pool.ledger.release(blocks.allocation_id, blocks.token, "success")
    pool.start(pool.ledger.get("moved"))
    assert watched.observed("estimate_error_seconds") == {}
    assert pool.ledger.accuracy().scored == 0


def test_overuse_is_seen_per_task_and_each_episode_counts_once(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    pool.running(2_000, 1, 1_000)  # a1
    pool.running(2_000, 1, 0)  # a2: its RAM is not accounted

    def measured(*uses: TaskUse) -> dict[tuple[str, ...], float]:
        use = WorkerUse(0.0, 5000, 5000, None, None, None, 9000, 9000, uses)
        pool.ledger.heartbeat("w.n1.gpu_0", "one", LEASE_S, use)
        return values(watched.look())

    gpu, ram = ("n1", "gpu_0", "gpu_memory"), ("n1", "gpu_0", "ram")
    found = measured(TaskUse("a1", 2_500, 1_000), TaskUse("a2", 2_000, 9_000))
    assert (found[("overused_tasks", *gpu)], found[("overuse_bytes", *gpu)]) == (1, 500 * MB)
    assert (found[("overused_tasks", *ram)], found[("overuse_bytes", *ram)]) == (0, 0)
    found = measured(TaskUse("a1", 2_600, 1_001), TaskUse("a2", 2_100, 9_000))
    assert (found[("overused_tasks", *gpu)], found[("overuse_bytes", *gpu)]) == (2, 700 * MB)
    assert watched.counter("overuse_episodes_total") == {gpu: 2, ram: 1}
    found = measured(TaskUse("a1", 1_000, 100), TaskUse("a2", None, None))
    assert found[("overused_tasks", *gpu)] == 0
    measured(TaskUse("a1", 3_000, 100))
    assert watched.counter("overuse_episodes_total") == {gpu: 3, ram: 1}
    # Where its worker has judged, that counts: it knows what the task itself has added.
    found = measured(TaskUse("a1", 9_000, 9_000, 0, 300))
    assert (found[("overused_tasks", *gpu)], found[("overuse_bytes", *ram)]) == (0, 300 * MB)
    assert watched.counter("overuse_episodes_total") == {gpu: 3, ram: 2}


def test_idle_gaps_are_measured_from_look_to_look(watched: Watched) -> None:
    """After a change of the server nothing is granted before all workers have reported: a device stands idle."""
    pool = watched.pool
    pool.node(gpus=(10_000,))
    pool.ledger.tick()
    pool.ledger.client.hset(keys.key(pool.ledger.pool, "meta"), "run", "a" * 40)
    pool.ledger.tick()
    pool.submit(10_000)
    for _ in range(3):
        assert values(watched.look())["granting_paused", "paused"] == 1
        pool.at += 15
    assert watched.observed("idle_gap_seconds") == {}
    for device in ("gpu_0", "cpu"):
        number, _ = pool.ledger.rejoin(f"w.n1.{device}", "", LEASE_S)
        pool.worker("n1", device, report=number)
    assert pool.ledger.snapshot().granted == 1
    watched.look()
    assert watched.observed("idle_gap_seconds") == {60: 1}
    assert watched.tallies.distributions()["idle_gap_seconds"].total == pytest.approx(45)
    assert watched.tallies.counters()["idle_device_seconds_total"] == {(): pytest.approx(30)}


def test_what_an_operator_keeps_idle_and_what_one_look_sees_is_no_gap(watched: Watched) -> None:
    pool = watched.pool
    pool.node(gpus=(10_000,))
    pool.ledger.pause(stop=True)
    pool.submit(10_000)
    for _ in range(3):
        watched.look()
        pool.at += 10
    seen = look(pool.ledger)
    running = replace(seen.overview.cluster, paused="")
    watched.lookout._idling.look(running, seen.line)
    pool.ledger.pause(stop=False)
    watched.look()
    assert watched.observed("idle_gap_seconds") == {}


def test_the_recorders_lag_is_told_where_the_history_is_known(cluster: LedgerPool) -> None:
    cluster.node()
    seen = look(cluster.ledger)
    assert ("recorder_lag_seconds",) not in values(seen)
    assert values(seen, Recorded(2.5, 0, 0, "1-0"))["recorder_lag_seconds",] == 2.5


def test_a_history_that_cannot_be_read_any_more_falls_behind_and_counters_only_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Recorded | HistoryUnavailable] = [
        Recorded(1.0, 3, 10, "1000-0"),
        HistoryUnavailable("away"),
        Recorded(0.0, 2, 8, "9000-0"),  # old gaps were forgotten
        Recorded(0.0, 4, 9, "9000-0"),
    ]

    def read(*_: object) -> Recorded:
        one = told.pop(0)
        if isinstance(one, HistoryUnavailable):
            raise one
        return one

    monkeypatch.setattr("celery_allocator.metrics.recorded.read_recorded", read)
    tallies = Tallies()
    watch = RecordedWatch(Settings(), tallies, lambda: "9000-0")
    seen = []
    for _ in range(4):
        watch.look()
        counters = tallies.counters()
        assert watch.latest is not None
        gaps, missed = counters["recorder_gaps_total"][()], counters["recorder_missed_entries_total"][()]
        seen.append((watch.latest.lag_s, gaps, missed))
    assert seen == [(1.0, 3, 10), (8.0, 3, 10), (0.0, 3, 10), (0.0, 5, 11)]
