"""Affinity: a GPU where a task's word is loaded comes first, and is waited for, but never for longer than was said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_allocator.ledger import keys
from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy
from celery_allocator.overview import explain, read_outlook, read_waiting
from tests.support.ledger_checks import assert_empty, assert_right
from tests.support.ledger_pool import LedgerPool

Pools = Callable[..., LedgerPool]
EVERY = pytest.mark.parametrize("strategy", list(Strategy))


def begin(pools: Pools, gpus: int = 2, *, slots: int = 1, **options: Any) -> LedgerPool:
    """So many GPUs of 10,000 MB, each of a node of its own: ``n1/gpu_0``, ``n2/gpu_0``, …"""
    cluster = pools(**{"affinity_wait_s": 5.0, **options})
    for i in range(gpus):
        cluster.node(f"n{i + 1}", slots=slots, lease_s=1e6)
    return cluster


def load(cluster: LedgerPool, word: str, node: str) -> None:
    """A task with that word has run on the node's GPU."""
    cluster.ends(cluster.running(1_000, affinity=word, node=node).allocation_id)


def loaded(cluster: LedgerPool, word: str) -> list[str]:
    """Where the ledger thinks that it is loaded, the last used last."""
    found = cluster.ledger.client.zrange(keys.key(cluster.ledger.pool, "warm", word), 0, -1)
    return [device.decode() for device in found]


def told(cluster: LedgerPool) -> dict[str, str]:
    """What the events say of grants to tasks with an affinity, by allocation: ``hit`` or ``miss``."""
    granted = (row for _, row in cluster.ledger.events() if row["event"] == "granted")
    return {row["id"]: row["warm"] for row in granted if "warm" in row}


def submit(cluster: LedgerPool, word: str = "sdxl", gpu: int = 1_000, **options: Any) -> Allocation:
    return cluster.submit(gpu, affinity=word, **options).allocation


# --- where it goes


@EVERY
def test_a_gpu_where_it_is_loaded_comes_before_what_the_strategy_would_take(pools: Pools, strategy: Strategy) -> None:
    cluster = begin(pools, 3, slots=4)
    for node in ("n1", "n2", "n3"):
        load(cluster, "sdxl", node) if node == "n2" else load(cluster, node, node)
        cluster.at += 1
    cluster.running(5_000, node="n1", id="fullest")
    first = submit(cluster, strategy=strategy, id="first")
    assert first.place == "n2/gpu_0"
    assert submit(cluster, "n3", strategy=strategy).place == "n3/gpu_0"
    assert submit(cluster, "n1", strategy=strategy).place == "n1/gpu_0"
    assert told(cluster)["first"] == "hit"


def test_of_several_the_one_where_it_was_used_last(pools: Pools) -> None:
    cluster = begin(pools, 3)
    for node in ("n3", "n1", "n2"):
        load(cluster, "sdxl", node)
        cluster.at += 1
    assert loaded(cluster, "sdxl") == ["n3/gpu_0", "n1/gpu_0", "n2/gpu_0"]
    assert [submit(cluster).place for _ in range(3)] == ["n2/gpu_0", "n1/gpu_0", "n3/gpu_0"]


def test_without_one_it_goes_where_the_strategy_says(pools: Pools) -> None:
    cluster = begin(pools)
    load(cluster, "llama", "n2")
    assert submit(cluster, id="cold").place == "n1/gpu_0"
    assert told(cluster) == {"a1": "miss", "cold": "miss"}


@pytest.mark.parametrize("strategy", [Strategy.BEST_FIT, Strategy.SPREAD])
def test_of_equal_gpus_what_was_used_longest_ago_is_pushed_out(pools: Pools, strategy: Strategy) -> None:
    cluster = begin(pools, 4)
    for word, node in (("red", "n1"), ("green", "n3"), ("blue", "n2"), ("red", "n1")):
        load(cluster, word, node)
        cluster.at += 1
    new = [submit(cluster, f"new {i}", strategy=strategy).place for i in range(4)]
    assert new == ["n4/gpu_0", "n3/gpu_0", "n2/gpu_0", "n1/gpu_0"]


@pytest.mark.parametrize("strategy", [Strategy.BEST_FIT, Strategy.SPREAD])
def test_so_it_is_where_it_had_to_wait_for_something_else(pools: Pools, strategy: Strategy) -> None:
    """Both GPUs of a node are free, and its cores are not."""
    cluster = pools()
    cluster.node("n1", (10_000, 10_000), cores=2, slots=1)
    load(cluster, "llama", "n1")
    hog = cluster.running(cores=2)
    assert submit(cluster, strategy=strategy, id="late").state is State.WAITING
    assert cluster.ends(hog.allocation_id) == ["late"]
    assert loaded(cluster, "llama") == ["n1/gpu_0"]
    assert cluster.ledger.get("late").place == "n1/gpu_1"


def test_first_fit_takes_the_first(pools: Pools) -> None:
    cluster = begin(pools)
    load(cluster, "llama", "n1")
    assert submit(cluster, strategy=Strategy.FIRST_FIT).place == "n1/gpu_0"


def test_only_where_it_may_go_and_has_room(pools: Pools) -> None:
    cluster = begin(pools, 2, slots=4)
    load(cluster, "sdxl", "n2")
    assert submit(cluster, node="n1").place == "n1/gpu_0"
    load(cluster, "sdxl", "n2")
    cluster.by_hand(9_500, node="n2", ttl_s=1e5, expected_runtime_s=1000)
    assert submit(cluster).place == "n1/gpu_0"
    cluster.ledger.set_state("n1", "cordoned")
    cluster.node("n3", lease_s=1e6)
    assert submit(cluster).place == "n3/gpu_0", "n1 is warm, and closed"


def test_work_without_a_gpu_has_affinity_too(pools: Pools) -> None:
    cluster = begin(pools, 3, slots=4)
    cluster.ends(cluster.start(submit(cluster, gpu=0, node="n3")).allocation_id)
    assert submit(cluster, gpu=0).place == "n3/cpu"
    assert submit(cluster, gpu=1_000).place != "n3/cpu"


def test_a_share_is_one_of_the_warm_gpu(pools: Pools) -> None:
    cluster = begin(pools, 1, slots=4)
    cluster.node("large", gpus=(40_000,), lease_s=1e6)
    load(cluster, "sdxl", "large")
    claim = submit(cluster, gpu=0, share=0.25)
    assert (claim.place, claim.gpu_memory_mb) == ("large/gpu_0", 10_000)
    cluster.ends(cluster.start(claim).allocation_id)
    assert loaded(cluster, "sdxl") == ["large/gpu_0"]


def test_several_gpus_and_what_is_made_by_hand_have_none(pools: Pools) -> None:
    cluster = begin(pools, 1, slots=4)
    cluster.node("two", gpus=(10_000, 10_000), lease_s=1e6)
    load(cluster, "sdxl", "n1")
    assert submit(cluster, gpu_count=2).node == "two"
    cluster.by_hand(1_000, affinity="llama", id="hand")
    assert told(cluster) == {"a1": "miss"}
    assert loaded(cluster, "llama") == []


# --- what is loaded


def test_it_is_loaded_for_so_long(pools: Pools) -> None:
    cluster = begin(pools, affinity_s=100)
    load(cluster, "sdxl", "n2")
    cluster.at += 99
    assert submit(cluster, id="in-time").place == "n2/gpu_0"
    cluster.ends("in-time")
    cluster.at += 101
    assert submit(cluster, id="late").place == "n1/gpu_0"
    assert told(cluster) == {"a1": "miss", "in-time": "hit", "late": "miss"}


def test_with_no_time_there_is_no_affinity(pools: Pools) -> None:
    cluster = begin(pools, affinity_s=0)
    load(cluster, "sdxl", "n2")
    assert submit(cluster).place == "n1/gpu_0"


@pytest.mark.parametrize(("slots", "keeps"), [(1, 1), (2, 1), (1, 3)])
def test_a_gpu_keeps_so_many_words(pools: Pools, slots: int, keeps: int) -> None:
    cluster = begin(pools, 1, slots=slots, affinity_keeps=keeps)
    words = [f"model {i}" for i in range(5)]
    for word in words:
        load(cluster, word, "n1")
    assert [word for word in words if loaded(cluster, word)] == words[-slots * keeps :]


def test_many_words_leave_no_more_keys_than_gpus_keep(pools: Pools) -> None:
    cluster = begin(pools, 2)
    for i in range(100):
        load(cluster, f"word {i}", f"n{i % 2 + 1}")
    found = list(cluster.ledger.client.scan_iter(match=keys.key(cluster.ledger.pool, "warm", "*"), count=1000))
    assert len(found) == 2
    assert_empty(cluster.ledger)


def test_a_worker_that_leaves_takes_it_along(pools: Pools) -> None:
    cluster = begin(pools, 2)
    load(cluster, "sdxl", "n2")
    cluster.ledger.unregister_worker("w.n2.gpu_0", "one")
    assert loaded(cluster, "sdxl") == []
    cluster.worker("n2", "gpu_0", "two", slots=1)
    assert submit(cluster).place == "n1/gpu_0"


def test_a_worker_that_dies_takes_it_along(pools: Pools) -> None:
    cluster = begin(pools, 2)
    load(cluster, "sdxl", "n2")
    cluster.worker("n2", "gpu_0", slots=1, lease_s=5)
    cluster.at += 1
    assert loaded(cluster, "sdxl") == ["n2/gpu_0"], "it has registered again, and is the same"
    cluster.ticks(3)
    cluster.ticks(3)
    assert loaded(cluster, "sdxl") == []


def test_a_process_that_dies_takes_it_along(pools: Pools) -> None:
    cluster = begin(pools, 2)
    running = cluster.running(1_000, affinity="sdxl", node="n2")
    assert loaded(cluster, "sdxl") == ["n2/gpu_0"]
    cluster.ends(running.allocation_id, "lost")
    assert loaded(cluster, "sdxl") == []


def test_what_never_started_has_loaded_nothing(pools: Pools) -> None:
    cluster = begin(pools, 2)
    cold = submit(cluster, node="n2")
    assert loaded(cluster, "sdxl") == ["n2/gpu_0"], "the next one goes there too"
    assert cluster.ledger.cancel(cold.allocation_id).done
    cluster.ledger.settle([cold.allocation_id])
    assert loaded(cluster, "sdxl") == []
    load(cluster, "sdxl", "n2")
    assert cluster.ledger.cancel(submit(cluster, id="hit").allocation_id).done
    assert loaded(cluster, "sdxl") == ["n2/gpu_0"], "it was there before"
    cluster.ledger.settle(["hit"])
    assert_empty(cluster.ledger)


# --- how long it waits


def busy(pools: Pools, gpus: int = 2, *, seconds: int = 3, **options: Any) -> LedgerPool:
    """``sdxl`` runs on ``n1`` for so long (0: nobody knows), and the others are free."""
    cluster = begin(pools, gpus, **options)
    cluster.running(1_000, affinity="sdxl", node="n1", id="busy", expected_runtime_s=seconds)
    return cluster


@pytest.mark.parametrize("seconds", [3, 0])
def test_it_waits_for_a_gpu_where_it_is_loaded(pools: Pools, seconds: int) -> None:
    cluster = busy(pools, seconds=seconds)
    assert submit(cluster, id="waits").state.value == "waiting"
    cluster.at += 3
    assert cluster.ends("busy") == ["waits"]
    assert cluster.ledger.get("waits").place == "n1/gpu_0"
    assert told(cluster) == {"busy": "miss", "waits": "hit"}
    cluster.ends("waits")
    assert_empty(cluster.ledger)


def test_not_for_longer_than_was_said(pools: Pools) -> None:
    cluster = busy(pools)
    submit(cluster, id="waits")
    assert cluster.ticks(4.9) == []
    assert_right(cluster.ledger)
    assert cluster.ticks(0.1) == ["waits"]
    assert cluster.ledger.get("waits").place == "n2/gpu_0"
    assert told(cluster)["waits"] == "miss"
    for name in ("busy", "waits"):
        cluster.ends(name)
    assert_empty(cluster.ledger)


def test_not_where_it_would_come_too_late(pools: Pools) -> None:
    assert submit(busy(pools, seconds=6)).place == "n2/gpu_0"


@pytest.mark.parametrize("options", [{"affinity_wait_s": 0.0}, {"backfill": "none"}])
def test_not_at_all_where_that_was_said_or_others_may_not_pass(pools: Pools, options: dict[str, Any]) -> None:
    assert submit(busy(pools, **options)).place == "n2/gpu_0"


def test_not_for_a_worker_that_takes_nothing_new(pools: Pools) -> None:
    cluster = busy(pools)
    cluster.ledger.close_worker("w.n1.gpu_0", "one")
    assert submit(cluster).place == "n2/gpu_0"


def test_it_goes_elsewhere_once_there_is_nothing_to_wait_for(pools: Pools) -> None:
    cluster = busy(pools)
    submit(cluster, id="waits")
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    assert cluster.ledger.get("waits").place == "n2/gpu_0"


def test_what_is_delayed_waits_from_its_time_on(pools: Pools) -> None:
    cluster = busy(pools, seconds=0)
    submit(cluster, id="waits", eta_at=cluster.at + 60)
    assert cluster.ticks(60) == []
    assert cluster.state("waits") == "waiting"
    assert cluster.ticks(4.9) == []
    assert cluster.ticks(0.1) == ["waits"]


def test_all_of_a_lane_wait_for_that_time_together(pools: Pools) -> None:
    """What nobody is to wait for twice: with room for them all, all go when the first has waited for long enough."""
    cluster = busy(pools, 4, seconds=0)
    submit(cluster, id="first")
    cluster.at += 2
    submit(cluster, id="second")
    assert cluster.ticks(2.9) == []
    assert cluster.ticks(0.1) == ["first", "second"]


def test_the_time_goes_on_after_a_hit(pools: Pools) -> None:
    cluster = busy(pools, 4, seconds=0)
    submit(cluster, id="first")
    submit(cluster, id="second")
    cluster.at += 4
    assert cluster.ends("busy") == ["first"]
    assert cluster.ticks(0.9) == []
    assert cluster.ticks(0.1) == ["second"]


def test_who_comes_after_that_may_wait_again(pools: Pools) -> None:
    cluster = busy(pools, 4, seconds=0)
    submit(cluster, id="first")
    assert cluster.ticks(5) == ["first"]
    submit(cluster, id="second")
    assert cluster.ticks(4.9) == []
    assert cluster.ticks(0.1) == ["second"]


def test_a_newcomer_that_goes_before_them_makes_nobody_wait_longer(pools: Pools) -> None:
    """Of one lane, by their priority: the one that is there has waited for long enough, and could go only after it."""
    cluster = busy(pools, 4, seconds=0)
    submit(cluster, id="first")
    cluster.at += 5
    assert submit(cluster, id="second", priority=5).place == "n2/gpu_0"
    assert cluster.ticks() == ["first"]


def test_who_has_waited_for_long_enough_takes_what_comes_free_first(pools: Pools) -> None:
    cluster = busy(pools, 2, seconds=0)
    submit(cluster, id="first", gpu=6_000)
    cluster.running(10_000, node="n2", id="other")
    assert cluster.ticks(5) == []
    assert cluster.ends("other") == ["first"], "though n1 may come in time"


def test_an_operator_who_moves_it_gives_it_no_more_time(pools: Pools) -> None:
    cluster = busy(pools, 4, seconds=0)
    submit(cluster, id="first")
    cluster.at += 4.9
    cluster.ledger.prioritize("first", 3)
    assert cluster.ticks(0.1) == ["first"]


def test_what_is_let_go_on_is_placed(pools: Pools) -> None:
    cluster = busy(pools, 4, seconds=0)
    submit(cluster, id="first")
    cluster.ledger.hold("first")
    assert cluster.ticks(10) == []
    cluster.ledger.unhold("first")
    cluster.ticks(5)
    assert cluster.ledger.get("first").place == "n2/gpu_0"


# --- who waits with it


def test_others_pass_it_and_nothing_is_kept_for_it(pools: Pools) -> None:
    cluster = busy(pools, 3, seconds=0)
    submit(cluster, id="waits")
    assert cluster.submit(10_000, id="other").allocation.place == "n2/gpu_0"
    assert submit(cluster, "llama", id="third").place == "n3/gpu_0"
    assert "id" not in cluster.reserved()
    cluster.submit(10_000, id="first")
    cluster.submit(1_000, node="n2", id="second")
    assert cluster.ends("other") == ["first"], "it goes before who has come after it, and waits no more"


def test_who_is_first_of_those_that_do_not_fit_has_the_reservation(pools: Pools) -> None:
    cluster = busy(pools, 2, slots=4, seconds=3)
    cluster.running(6_000, node="n2", id="holder", expected_runtime_s=100)
    cluster.by_hand(9_000, node="n1", id="hand", expected_runtime_s=3, ttl_s=1e5)
    submit(cluster, id="waits")
    assert cluster.state("waits") == "waiting"
    cluster.submit(10_000, id="big", node="n2", expected_runtime_s=10)
    cluster.submit(2_000, id="small", expected_runtime_s=10)
    assert cluster.state("small") == "granted"
    assert cluster.reserved()["id"] == "big"


def test_what_finds_no_room_at_all_is_first_as_any_other(pools: Pools) -> None:
    cluster = busy(pools, 2, seconds=3)
    cluster.running(1_000, node="n2", id="holder", expected_runtime_s=100)
    submit(cluster, gpu=10_000, id="first")
    cluster.submit(1_000, node="n1", id="second")
    cluster.worker("n1", "gpu_0", slots=2, lease_s=1e6)
    assert cluster.reserved().get("id") == "first"
    assert cluster.ends("holder") == ["second"], "n1 may come in time, so that nothing is kept there any more"
    assert cluster.ticks(5) == ["first"]
    assert cluster.ledger.get("first").place == "n2/gpu_0"


def test_other_tenants_are_not_held_up(pools: Pools) -> None:
    cluster = busy(pools, 2, seconds=0)
    cluster.running(1_000, node="n2", id="holder")
    submit(cluster, id="waits", tenant="one")
    cluster.submit(1_000, id="other", tenant="two", node="n2")
    assert cluster.ends("holder") == ["other"]
    assert cluster.state("waits") == "waiting"


def test_a_tenants_cap_holds_for_a_warm_gpu_too(pools: Pools) -> None:
    cluster = busy(pools, 2)
    cluster.quota("one", tasks=1)
    cluster.running(1_000, node="n2", tenant="one", id="holder")
    submit(cluster, id="waits", tenant="one")
    assert cluster.ends("busy") == []
    assert cluster.ends("holder") == ["waits"]
    assert cluster.ledger.get("waits").place == "n1/gpu_0"


def test_the_line_is_right_after_repair(pools: Pools) -> None:
    cluster = busy(pools, 3, seconds=0)
    submit(cluster, id="waits")
    cluster.ledger.repair()
    assert_right(cluster.ledger)
    for _ in range(3):
        cluster.ticks(5)
    assert cluster.state("waits") == "granted"
    for name in ("busy", "waits"):
        cluster.ends(name)
    assert_empty(cluster.ledger)


# --- what is said of it


def test_plan_says_that_it_would_wait(pools: Pools) -> None:
    cluster = busy(pools, seconds=0)
    asked = Requirements(1_000, affinity="sdxl")
    planned = cluster.ledger.plan("work", asked)
    assert (planned.device, planned.position, planned.affinity_until) == (None, 1, cluster.at + 5)
    assert planned.estimated_start_at is not None and planned.estimated_start_at >= cluster.at + 5
    assert cluster.ledger.plan("work", asked, kind=Kind.MANUAL).device == "n1/gpu_0", "best fit"
    assert cluster.ledger.plan("work", Requirements(1_000, affinity="llama")).device == "n2/gpu_0"
    cluster.ends("busy")
    assert cluster.ledger.plan("work", asked).device == "n1/gpu_0"
    assert loaded(cluster, "sdxl") == ["n1/gpu_0"], "nothing has changed"
    assert cluster.ledger.client.exists(keys.key(cluster.ledger.pool, "patience")) == 0


def test_what_waits_has_a_date_by_which_it_starts_in_any_case(pools: Pools) -> None:
    cluster = busy(pools, seconds=0)
    made = submit(cluster, id="waits")
    assert made.estimated_start_at == pytest.approx(cluster.at + 5, abs=0.5)
    cluster.at += 1
    read = cluster.ledger.get("waits")
    assert read.estimated_start_at == pytest.approx(cluster.at + 4, abs=0.5)


def test_why_says_what_it_waits_for_and_for_how_long(pools: Pools) -> None:
    cluster = busy(pools, seconds=0)
    submit(cluster, id="waits", tenant="one")
    submit(cluster, id="behind", tenant="one", gpu=2_000)
    cluster.submit(1_000, node="n1", id="other")
    cluster.at += 1.5
    reason = explain(cluster.ledger, cluster.ledger.get("waits")).reason
    assert (reason.code, reason.text) == (
        "affinity",
        "There is room for it; it waits up to 4 s for a GPU where sdxl is loaded.",
    )
    outlook = read_outlook(cluster.ledger)
    told = outlook.as_dict()["affinity"]
    assert {(row["affinity"], row["tenant"], row["until"]) for row in told} == {("sdxl", "one", cluster.at + 3.5)}
    rows = read_waiting(cluster.ledger, cluster.ledger.snapshot(), outlook).rows
    codes = {row.allocation.allocation_id: row.reason.code for row in rows}
    assert codes == {"waits": "affinity", "behind": "affinity", "other": "room"}
    cluster.ticks(4)
    assert read_outlook(cluster.ledger).patience == ()


def test_the_snapshot_says_what_is_loaded_where(pools: Pools) -> None:
    cluster = begin(pools, 2, slots=2, affinity_s=100)
    assert cluster.device("n1/gpu_0").affinities == ()
    load(cluster, "red", "n1")
    cluster.at += 60
    load(cluster, "green", "n1")
    assert cluster.device("n1/gpu_0").affinities == ("green", "red")
    assert cluster.device("n2/gpu_0").affinities == ()
    cluster.at += 60
    assert cluster.device("n1/gpu_0").affinities == ("green",)
