"""EASY backfilling: what is kept for the first in line that does not fit, who may pass it, when it is another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.ledger_pool import LedgerPool

Pools = Callable[..., LedgerPool]
AGES = 1e7


def begin(pools: Pools, *, known: bool = True, cores: int = 8, **options: Any) -> LedgerPool:
    """One device of 10,000 MB: ``holder`` has 6,000 for 100 seconds (or nobody knows), ``big`` waits for 8,000."""
    cluster = pools(**options)
    cluster.node(cores=cores, slots=20, lease_s=AGES)
    cluster.running(6_000, id="holder", expected_runtime_s=100 if known else 0)
    assert cluster.submit(8_000, id="big").allocation.state.value == "waiting"
    return cluster


def state(cluster: LedgerPool, gpu: int, cores: int = 1, ram: int = 0, *, seconds: int = 0, **options: Any) -> str:
    return cluster.submit(gpu, cores, ram, expected_runtime_s=seconds, **options).allocation.state.value


# --- who may pass


def test_what_ends_before_the_reserved_time_passes_and_what_does_not_waits(pools: Pools) -> None:
    """To the second: 4,000 are free, of which 2,000 are left beside the big one."""
    for seconds, becomes in ((60, "granted"), (61, "waiting")):
        cluster = begin(pools)
        cluster.at += 40
        assert state(cluster, 4_000, seconds=seconds) == becomes
        reserved = cluster.reserved()
        assert (reserved["id"], reserved["dev"], int(reserved["at"])) == (
            "big",
            "n1/gpu_0",
            int(cluster.at + 60) * 1000,
        )


def test_what_is_left_beside_the_big_one_may_be_had_for_any_time(pools: Pools) -> None:
    cluster = begin(pools)
    assert state(cluster, 2_001) == "waiting"
    assert state(cluster, 1_500) == "granted"
    assert state(cluster, 501) == "waiting"  # each takes from what is left
    assert state(cluster, 500) == "granted"
    assert cluster.ends("holder") == ["big"]


@pytest.mark.parametrize(("cores", "ram"), [(1, 0), (0, 1_000)])
def test_cores_and_ram_of_the_node_are_kept_too(pools: Pools, cores: int, ram: int) -> None:
    """On the other device of its node as well. Beside the big one, one core and 1,000 MB of RAM are left."""
    cluster = pools()
    cluster.node(gpus=(10_000, 10_000), cores=8, ram=8_000, slots=20)
    cluster.running(6_000, 3, 4_000, id="holder", expected_runtime_s=100)
    cluster.running(6_000, 1, 1_000, id="other", expected_runtime_s=1000)
    cluster.submit(8_000, 6, 6_000, id="big")
    assert cluster.device("n1/gpu_1").allocations == ("other",)
    assert state(cluster, 100, cores, ram) == "granted"
    assert state(cluster, 100, cores, ram) == "waiting"
    assert state(cluster, 100, cores, ram, seconds=200) == "waiting"
    assert state(cluster, 100, cores, ram, seconds=100, id="short") == "granted"
    assert state(cluster, 0, cores, ram, task_name="cpu") == "waiting"
    assert cluster.ends("holder") == []
    assert cluster.ends("short") == ["big"]


def test_slots_are_kept_too(pools: Pools) -> None:
    cluster = pools()
    cluster.node(slots=2)
    cluster.running(6_000, id="holder", expected_runtime_s=100)
    cluster.submit(8_000, id="big")
    assert state(cluster, 1_000) == "granted"
    cluster.ends("a1")
    cluster.worker("n1", "gpu_0", slots=1)  # with one slot there is none beside it
    assert state(cluster, 1_000) == "waiting"
    assert cluster.by_hand(1_000).allocation.state.value == "running"
    assert cluster.ends("holder") == ["big"]


def test_on_other_nodes_nothing_is_kept_back(pools: Pools) -> None:
    cluster = begin(pools)
    cluster.node("n2", gpus=(5_000,), slots=20)
    for _ in range(7):  # two beside the big one, all others there
        assert state(cluster, 1_000) == "granted"
    assert cluster.device("n2/gpu_0").memory_free_mb == 0
    assert cluster.reserved()["id"] == "big"
    assert state(cluster, 3_000) == "waiting"


def test_it_is_kept_where_the_big_one_can_start_first(pools: Pools) -> None:
    """Of two devices the one whose task ends earlier, whatever it has free now."""
    cluster = pools()
    cluster.node("n1", gpus=(10_000,), slots=4)
    cluster.node("n2", gpus=(12_000,), slots=4)
    cluster.running(9_000, id="one", expected_runtime_s=50)
    cluster.running(9_000, id="two", expected_runtime_s=100)
    cluster.submit(8_000, id="big")
    state(cluster, 3_000)
    assert cluster.reserved()["dev"] == "n1/gpu_0"


@pytest.mark.parametrize("seen", [2, 3])
def test_run_times_are_known_by_name_once_three_were_seen(pools: Pools, seen: int) -> None:
    cluster = pools()
    cluster.node(slots=20, lease_s=AGES)
    cluster.ran("long", *[100] * seen)
    cluster.ran("short", 10, 10, 10)
    cluster.running(6_000, id="holder", task_name="long")
    cluster.submit(8_000, id="big")
    assert state(cluster, 1_000, task_name="short") == "granted"
    assert (cluster.reserved()["dev"] != "") == (seen == 3)
    cluster.at += 1
    assert state(cluster, 2_500, task_name="long") == ("waiting" if seen == 3 else "granted")


def test_what_was_said_of_it_goes_before_what_was_learned(pools: Pools) -> None:
    cluster = pools()
    cluster.node(slots=20, lease_s=AGES)
    cluster.ran("work", 10, 10, 10)
    cluster.running(6_000, id="holder", expected_runtime_s=1000)
    cluster.submit(8_000, id="big")
    assert state(cluster, 4_000, seconds=1001) == "waiting"
    assert state(cluster, 3_000, seconds=999) == "granted"


# --- without run times


def test_it_may_be_passed_so_often_and_then_a_device_is_emptied_for_it(pools: Pools) -> None:
    cluster = begin(pools, known=False, max_bypass=3)
    assert [state(cluster, 500) for _ in range(5)] == ["granted"] * 3 + ["waiting"] * 2
    assert (cluster.reserved()["dev"], cluster.reserved()["at"]) == ("n1/gpu_0", "")
    for name in ("a1", "a2"):
        assert cluster.ends(name) == []
    assert cluster.ends("holder") == ["big", "a4", "a5"]


def test_or_for_so_long(pools: Pools) -> None:
    cluster = begin(pools, known=False, max_bypass_s=60)
    began = cluster.at
    assert state(cluster, 500) == "granted"
    cluster.at = began + 59.999
    assert state(cluster, 500) == "granted"
    cluster.at = began + 60
    assert state(cluster, 500) == "waiting"


def test_a_tick_is_enough_to_begin(pools: Pools) -> None:
    """Nobody need come to pass it."""
    cluster = begin(pools, known=False, max_bypass_s=60)
    state(cluster, 500)
    cluster.ticks(60)
    assert cluster.reserved()["dev"] == "n1/gpu_0"


def test_what_goes_elsewhere_counts_as_passing_too(pools: Pools) -> None:
    """Where it could be kept is not known before; of two nodes the one with most memory free is emptied."""
    cluster = begin(pools, known=False, max_bypass=1)
    cluster.node("n2", gpus=(9_000,), slots=20)
    cluster.ends("big")  # it fits there
    cluster.running(5_000, id="second")
    cluster.submit(8_000, id="next")
    assert state(cluster, 100) == "granted"
    assert state(cluster, 100) == "granted"
    assert cluster.reserved()["dev"] in ("n1/gpu_0", "n2/gpu_0")


def test_what_leaves_room_for_it_already_is_granted_on_the_device_that_is_emptied(pools: Pools) -> None:
    """It waits for cores; of the memory 2,000 are left beside it."""
    cluster = pools(max_bypass=0)
    cluster.node(cores=8, slots=20)
    cluster.running(0, 6, id="holder")
    cluster.submit(8_000, 4, id="big")
    assert state(cluster, 2_000, 1) == "waiting"  # the cores are kept
    assert state(cluster, 2_000, 0, 1) == "granted"
    assert state(cluster, 1, 0, 1) == "waiting"
    assert cluster.ends("holder")[0] == "big"


@pytest.mark.parametrize("way", ["cordon", "shrink", "worker"])
def test_a_device_that_can_hold_it_no_more_is_emptied_no_more(pools: Pools, way: str) -> None:
    """Another one is, though nobody knows when that will be free either."""
    cluster = pools(max_bypass=0)
    for node in ("n1", "n2"):
        cluster.node(node, slots=20)
        cluster.running(6_000)
    cluster.submit(8_000, id="big")
    assert state(cluster, 3_000) == "granted"  # on the one that is not emptied
    node = cluster.reserved()["dev"].split("/")[0]
    if way == "cordon":
        cluster.ledger.cordon(node)
    elif way == "shrink":
        cluster.node(node, gpus=(7_000,), slots=20)
    else:
        cluster.ledger.close_worker(f"w.{node}.gpu_0", "one")
    cluster.ticks(1)
    assert cluster.reserved()["dev"] == {"n1": "n2", "n2": "n1"}[node] + "/gpu_0"


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_kept_for_one_that_no_device_takes_any_more(pools: Pools, known: bool) -> None:
    """It waits on; what is kept is kept for the next."""
    cluster = begin(pools, known=known, max_bypass=0)
    cluster.node("n2", gpus=(7_000,), slots=20)
    cluster.running(6_000, id="small", expected_runtime_s=100 if known else 0)
    state(cluster, 2_500, id="passes")
    assert cluster.reserved()["id"] == "big"
    cluster.ledger.cancel("passes")
    cluster.ledger.cordon("n1")
    cluster.ticks(1)
    assert state(cluster, 6_500, id="next") == "waiting"
    assert state(cluster, 1_000, id="kept") == "waiting"
    assert (cluster.reserved()["id"], cluster.reserved()["dev"]) == ("next", "n2/gpu_0")


# --- whose it is


def test_it_stays_though_another_tenants_turn_comes(pools: Pools) -> None:
    """Unless that tenant holds nothing at all: its first task goes before."""
    cluster = begin(pools)
    assert state(cluster, 3_000) == "waiting"
    assert state(cluster, 3_000, tenant="other", id="first") == "granted"
    assert state(cluster, 2_500, tenant="other", id="second") == "waiting"
    assert cluster.reserved()["id"] == "big"
    assert cluster.ends("first") == []


def test_the_first_tasks_of_other_tenants_pass_so_often_at_most(pools: Pools) -> None:
    cluster = begin(pools, max_bypass=3)
    states = [state(cluster, 501, tenant=f"t{i}", id=f"t{i}") for i in range(7)]
    # 2,000 are left beside it: three fit there; three more pass.
    assert states == ["granted"] * 6 + ["waiting"]


def test_one_of_higher_priority_of_its_tenant_takes_it_over(pools: Pools) -> None:
    cluster = begin(pools)
    state(cluster, 100)
    assert cluster.reserved()["id"] == "big"
    assert state(cluster, 9_000, priority=1, id="urgent") == "waiting"
    state(cluster, 100)
    assert cluster.reserved()["id"] == "urgent"
    assert cluster.ends("holder") == ["urgent"]


def test_one_of_higher_priority_that_fits_is_granted_at_once(pools: Pools) -> None:
    """It passes nobody, and the reservation is kept for whom it was."""
    cluster = begin(pools)
    assert state(cluster, 3_000) == "waiting"
    assert state(cluster, 3_000, priority=1) == "granted"
    assert cluster.reserved()["id"] == "big"


@pytest.mark.parametrize("limits", [{"max_bypass": 5}, {"max_bypass_s": 50.0}])
def test_being_overtaken_by_priority_does_not_let_others_pass_for_longer(
    pools: Pools, limits: dict[str, float]
) -> None:
    """How often, and for how long, it was passed counts on when it is the first again."""
    cluster = begin(pools, known=False, **limits)
    passed = 0
    for i in range(20):
        cluster.at += 10
        if state(cluster, 100, 0, 1) == "waiting":
            break
        passed += 1
        assert state(cluster, 9_500, priority=1, id=f"urgent{i}") == "waiting"
        cluster.ledger.cancel(f"urgent{i}")
    assert passed == 5


def test_a_changed_priority_does_not_let_others_pass_for_longer(pools: Pools) -> None:
    cluster = begin(pools, known=False, max_bypass=3)
    for i in range(3):
        assert state(cluster, 100) == "granted"
        cluster.ledger.prioritize("big", i)
    assert state(cluster, 100, priority=-1) == "waiting"


@pytest.mark.parametrize("way", ["cancel", "hold", "expire", "elsewhere", "cap"])
def test_it_goes_to_the_next_when_its_holder_waits_for_room_no_more(pools: Pools, way: str) -> None:
    """And what was held back for the first is granted at once, or by the next tick."""
    cluster = pools()
    cluster.node(slots=20, lease_s=AGES)
    cluster.running(6_000, id="holder", expected_runtime_s=100)
    cluster.submit(8_000, id="big", tenant="t", expires_at=cluster.at + 5)
    assert state(cluster, 4_000, id="kept", tenant="t") == "waiting"
    assert cluster.reserved()["id"] == "big"
    if way == "cancel":
        cluster.ledger.cancel("big")
    elif way == "hold":
        cluster.ledger.hold("big")
    elif way == "expire":
        cluster.at += 5
    elif way == "elsewhere":
        grants = cluster.node("n2", gpus=(9_000,), slots=1, lease_s=AGES)
        assert [g.allocation_id for g in grants] == ["big", "kept"]
    else:
        cluster.quota("t", gpu_memory_mb=7_000)
    cluster.ticks()
    assert cluster.state("kept") == "granted"
    assert cluster.reserved().get("id") is None
    assert state(cluster, 9_000, id="next") == "waiting"
    assert state(cluster, 1_001, seconds=1000) == "waiting"
    assert cluster.reserved()["id"] == "next"


def test_who_is_first_and_fits_nowhere_has_none(pools: Pools) -> None:
    """It is the next one's: for one that no device could ever hold nothing is kept."""
    cluster = begin(pools)
    for i in range(20):  # of many shapes, each in a lane of its own
        assert state(cluster, 20_000 + i, priority=5, on_never="wait", id=f"never{i}") == "waiting"
    assert state(cluster, 4_000) == "waiting"
    assert cluster.reserved()["id"] == "big"


def test_a_large_device_is_found_among_many_small_ones(pools: Pools) -> None:
    """Though all of these have more memory free."""
    cluster = pools()
    for i in range(10):
        cluster.node(f"s{i}", gpus=(4_000,) * 4, slots=4)
    cluster.node("large", gpus=(40_000,), slots=4)
    cluster.running(40_000, id="holder", expected_runtime_s=100)
    cluster.submit(30_000, id="big")
    assert state(cluster, 4_000) == "granted"
    assert cluster.reserved()["dev"] == "large/gpu_0"


def test_what_was_kept_back_on_several_nodes_is_all_granted_by_the_next_tick(pools: Pools) -> None:
    """Though the reservation moved twice in between."""
    cluster = pools()
    for node in ("n1", "n2"):
        cluster.node(node, slots=20, lease_s=AGES)
        cluster.running(6_000, id=f"holder {node}".replace(" ", "-"), expected_runtime_s=100 if node == "n1" else 200)
    cluster.submit(8_000, id="big1")
    assert state(cluster, 3_000, seconds=1000, id="s1", tenant="t") in ("granted", "waiting")
    cluster.submit(9_000, id="big2")
    first = cluster.reserved()["dev"]
    cluster.ledger.cancel("big1")
    state(cluster, 4_000, 2, seconds=1000, id="s2")
    cluster.ledger.cancel("big2")
    cluster.ticks(1)
    assert first
    assert cluster.ledger.queue() == ()


# --- damage


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": ""}, {"shape": "much"}, {"score": "soon"}, {"since": "once"}, {"by": "many"}, {"at": "noon"},
        {"dev": "nowhere"}, {"dev": "n9/gpu_0"}, {"id": "nobody"}, {"tenant": "?"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_reservation_stops_nothing(pools: Pools, damage: dict[str, str], gone: bool) -> None:
    cluster = begin(pools)
    assert state(cluster, 3_000, id="kept") == "waiting"
    key = f"{{allocator:{cluster.ledger.pool}}}:reserved"
    (field, value), *_ = damage.items()
    if gone:
        cluster.ledger.client.hdel(key, field)
    else:
        cluster.ledger.client.hset(key, field, value)
    assert state(cluster, 100) in ("granted", "waiting")
    cluster.ticks(1)
    assert state(cluster, 3_000, priority=-1) == "waiting"
    assert cluster.reserved()["id"] == "big"
    assert cluster.ends("holder")[0] == "big"


def test_lines_and_quotas_that_cannot_be_read_stop_nothing(pools: Pools) -> None:
    cluster = begin(pools)
    prefix = f"{{allocator:{cluster.ledger.pool}}}:"
    cluster.ledger.client.zadd(f"{prefix}turn:", {"no lane": -1e15, "a/b": 0, "x:y:z:t//": 1})
    for i, quota in enumerate(('{"tasks": "few"}', '{"weight": "heavy"}', "[1]", "null", '{"tasks": null}', "{")):
        cluster.ledger.client.hset(f"{prefix}quotas", f"t{i}", quota)
        cluster.submit(300, tenant=f"t{i}")
    cluster.ticks(1)
    assert "big" in cluster.ends("holder")
    assert cluster.ledger.repair().left == ()
