"""Whose turn it is: priority with ageing, tenants by dominant share, their caps, the shorter ones, who passes whom."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from celery_allocator.errors import TenantCapError
from celery_allocator.ledger import Note
from celery_allocator.model import Requirements
from tests.support.ledger_checks import assert_empty
from tests.support.ledger_pool import LedgerPool

Pools = Callable[..., LedgerPool]
#: So long that no lease ends in a test that lets hours pass.
AGES = 1e7


# --- ageing


@pytest.mark.parametrize(("weight", "minutes"), [(1.0, 1.0), (2.0, 0.5), (0.25, 4.0)])
def test_one_point_of_priority_is_made_up_for_by_waiting_one_over_the_weight(
    pools: Pools, weight: float, minutes: float
) -> None:
    """To the millisecond: the score counts sixteenths of one."""
    for ahead, first in ((-0.001, "urgent"), (0.001, "patient")):
        cluster = pools(age_weight=weight)
        cluster.node(lease_s=AGES)
        cluster.submit(10_000, id="holder")
        cluster.submit(10_000, id="patient", priority=0)
        cluster.at += minutes * 60 + ahead
        cluster.submit(10_000, id="urgent", priority=1)
        assert cluster.ledger.queue()[0].allocation_id == first
        assert cluster.ends("holder") == [first]


def test_without_ageing_no_waiting_makes_up_for_priority(pools: Pools) -> None:
    cluster = pools(age_weight=0)
    cluster.node(lease_s=AGES)
    cluster.submit(10_000, id="holder")
    cluster.submit(10_000, id="patient", priority=-1)
    cluster.at += 365 * 86_400
    cluster.submit(10_000, id="urgent", priority=0)
    assert cluster.ends("holder") == ["urgent"]


def test_a_changed_priority_counts_from_the_old_arrival(pools: Pools) -> None:
    cluster = pools(age_weight=1)
    cluster.node(lease_s=AGES)
    cluster.submit(10_000, id="holder")
    cluster.submit(10_000, id="old", priority=0)
    cluster.at += 90
    cluster.submit(10_000, id="new", priority=2)
    assert [a.allocation_id for a in cluster.ledger.queue()] == [
        "new",
        "old",
    ]  # a minute and a half is less than two points
    cluster.ledger.prioritize("old", 1)
    assert [a.allocation_id for a in cluster.ledger.queue()] == ["old", "new"]


# --- tenants take turns


def test_dominant_shares_give_the_schedule_of_the_paper(pools: Pools) -> None:
    """Nine cores, 18 GB; A's tasks take 1 core and 4 GB, B's 3 cores and 1 GB (Ghodsi et al.: NSDI 2011, table 1)."""
    cluster = pools()
    for name in ("b1", "b2", "b3", "b4"):
        cluster.submit(0, 3, 1, id=name, tenant="B")
    for name in ("a1", "a2", "a3", "a4", "a5"):
        cluster.submit(0, 1, 4, id=name, tenant="A")
    grants = cluster.node(gpus=(), cores=9, ram=18, slots=20)
    # Shares after each: B 1/3; A 2/9; A 4/9; B 2/3; A 2/3. Then all cores are taken.
    assert [g.allocation_id for g in grants] == ["b1", "a1", "a2", "b2", "a3"]


def test_gpu_memory_is_a_dominant_resource_too(pools: Pools) -> None:
    """The one with a twentieth of all cores and half of the GPU memory has half."""
    cluster = pools()
    cluster.node(gpus=(10_000, 10_000), cores=40, slots=10)
    cluster.submit(10_000, 2, id="gpu", tenant="gpu")
    cluster.submit(0, 16, id="cpu", tenant="cpu")  # 0.4
    cluster.submit(0, 22, id="last", tenant="last")  # the rest of the cores
    cluster.submit(5_000, 8, id="gpu_next", tenant="gpu")
    cluster.submit(5_000, 8, id="cpu_next", tenant="cpu")
    assert cluster.ends("last") == ["cpu_next", "gpu_next"]


def test_weights_share_in_proportion(pools: Pools) -> None:
    cluster = pools()
    cluster.quota("heavy", weight=2)
    for i in range(9):
        cluster.submit(0, 1, id=f"light_{i}", tenant="light")
        cluster.submit(0, 1, id=f"heavy_{i}", tenant="heavy")
    grants = cluster.node(gpus=(), cores=9, slots=20)
    assert Counter(g.allocation_id.split("_")[0] for g in grants) == {"heavy": 6, "light": 3}


@pytest.mark.parametrize("devices", [1, 4])
def test_a_flood_delays_another_tenants_first_task_by_one_task_length_at_most(pools: Pools, devices: int) -> None:
    """Each runs 10 seconds; whoever comes into a flooded pool starts with the next that ends."""
    cluster = pools()
    cluster.node(gpus=(10_000,) * devices, cores=16, slots=1, lease_s=AGES)
    for i in range(60):
        cluster.at += 10 / devices
        if i >= devices:
            oldest = cluster.ledger.held()[0].allocation_id
            cluster.ends(oldest)
        for _ in range(3):
            cluster.submit(10_000, tenant="flood", expected_runtime_s=10)
    assert len(cluster.ledger.queue(1000)) > 100
    came = cluster.at
    cluster.submit(10_000, id="first", tenant="late", expected_runtime_s=10)
    while cluster.state("first") == "waiting":
        cluster.at += 10 / devices
        cluster.ends(cluster.ledger.held()[0].allocation_id)
    assert cluster.at - came <= 10


def test_those_that_name_no_tenant_are_one_together(pools: Pools) -> None:
    cluster = pools()
    for i in range(4):
        cluster.submit(0, 1, id=f"nobody_{i}")
    cluster.submit(0, 1, id="somebody", tenant="t")
    grants = cluster.node(gpus=(), cores=2, slots=4)
    assert [g.allocation_id for g in grants] == ["nobody_0", "somebody"]


def test_nothing_is_left_of_a_tenant_that_has_nothing(pools: Pools) -> None:
    cluster = pools()
    cluster.node()
    for tenant in ("t", ""):
        cluster.submit(1_000, id=f"by-{tenant}", tenant=tenant)
    for tenant in ("t", ""):
        cluster.ends(f"by-{tenant}")
    assert_empty(cluster.ledger)


# --- caps


CAPS: list[tuple[dict[str, int], Requirements]] = [
    ({"gpu_memory_mb": 5_000}, Requirements(3_000, 1)),
    ({"cpu_cores": 5}, Requirements(0, 3)),
    ({"ram_mb": 5_000}, Requirements(0, 1, 3_000)),
    ({"tasks": 1}, Requirements(1_000, 1)),
]


@pytest.mark.parametrize(
    ("cap", "need"), CAPS, ids=lambda value: next(iter(value), "") if isinstance(value, dict) else ""
)
def test_who_is_at_its_cap_waits_beside_free_room_and_goes_on_below_it(
    pools: Pools, cap: dict[str, int], need: Requirements
) -> None:
    cluster = pools()
    cluster.node()
    cluster.quota("t", **cap)

    def submit(name: str, tenant: str) -> str:
        wanted = Requirements(need.gpu_memory_mb, need.cpu_cores, need.ram_mb, tenant=tenant)
        return cluster.ledger.submit(name, name, "work", wanted, message=b"m").allocation.state.value

    assert [submit("one", "t"), submit("two", "t"), submit("others", "u")] == ["granted", "waiting", "granted"]
    assert cluster.ticks(1) == []
    assert cluster.ends("one") == ["two"]


@pytest.mark.parametrize(
    ("cap", "need"), CAPS, ids=lambda value: next(iter(value), "") if isinstance(value, dict) else ""
)
def test_what_is_above_its_tenants_cap_is_refused_by_name(
    pools: Pools, cap: dict[str, int], need: Requirements
) -> None:
    cluster = pools()
    cluster.node()
    (dimension, limit), *_ = cap.items()
    limit = 0 if dimension == "tasks" else getattr(need, dimension) - 1
    cluster.quota("t", **{dimension: limit})
    wanted = Requirements(need.gpu_memory_mb, need.cpu_cores, need.ram_mb, tenant="t")
    with pytest.raises(TenantCapError) as caught:
        cluster.ledger.submit("a", "a", "work", wanted)
    assert (caught.value.tenant, caught.value.dimension, caught.value.largest) == ("t", dimension, limit)
    assert cluster.ledger.submit("a", "a", "work", wanted, on_never="wait").allocation.state.value == "waiting"


def test_a_cap_that_is_free_again_lets_go_on_what_fits_on_another_node_alone(pools: Pools) -> None:
    """Room is not what it waited for: that node has not seen anything change."""
    cluster = pools()
    cluster.node("n1", gpus=(4_000,))
    cluster.quota("t", tasks=1)
    cluster.submit(4_000, id="small", tenant="t")
    cluster.node("n2", gpus=(16_000,))
    assert cluster.submit(16_000, id="large", tenant="t").allocation.state.value == "waiting"
    assert cluster.ends("small") == ["large"]


@pytest.mark.parametrize("way", ["cancel", "expiry", "ttl", "worker", "park"])
def test_a_cap_is_free_again_however_what_filled_it_ends(pools: Pools, way: str) -> None:
    cluster = pools()
    cluster.node("n1", gpus=(4_000,), lease_s=30)
    cluster.quota("t", tasks=1)
    if way == "ttl":
        cluster.by_hand(4_000, id="small", tenant="t", ttl_s=5)
    else:
        cluster.submit(4_000, id="small", tenant="t", expires_at=cluster.at + 5 if way == "expiry" else None)
    cluster.node("n2", gpus=(16_000,), lease_s=1_000)
    cluster.submit(16_000, id="large", tenant="t")
    assert cluster.state("large") == "waiting"
    if way == "cancel":
        cluster.ledger.cancel("small")
    elif way == "park":
        cluster.ledger.park("small", "cannot be read")
    elif way == "worker":
        cluster.start(cluster.ledger.get("small"))
        cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    else:
        cluster.ticks(5)
    assert cluster.state("large") == "granted"


def test_what_is_brought_back_waits_for_its_cap_too(pools: Pools) -> None:
    """Its place is free, and another one of its tenant has started since."""
    cluster = pools()
    cluster.node()
    cluster.quota("t", tasks=1)
    cluster.submit(1_000, id="one", tenant="t")
    entry = cluster.ledger.cancel("one", note=Note("end", {}, "ada")).entry
    assert entry is not None
    cluster.submit(1_000, id="two", tenant="t")
    assert cluster.ledger.restore("one", note=Note("end", {}, "ada", way="undo", of=entry)).becomes == "waiting"
    assert cluster.ends("two") == ["one"]


def test_who_waits_for_its_own_cap_is_not_the_first_in_line(pools: Pools) -> None:
    """Not for others, whom nobody may pass (``none``): one is held up by itself."""
    cluster = pools(backfill="none")
    cluster.node()
    cluster.quota("t", tasks=1)
    for name in ("one", "two"):
        cluster.submit(1_000, id=name, tenant="t")
    assert cluster.submit(1_000, id="others", tenant="u").allocation.state.value == "granted"
    assert cluster.ends("one") == ["two"]


# --- who passes whom


def test_of_one_point_of_priority_the_shorter_ones_pass_first(pools: Pools) -> None:
    cluster = pools()
    cluster.node(gpus=(10_000, 3_000), cores=16, slots=4)
    cluster.submit(8_000, id="holder", expected_runtime_s=1000)
    cluster.submit(3_000, id="other_holder")
    cluster.submit(10_000, id="big")
    for name, seconds, priority in (("long", 500, 0), ("short", 20, 0), ("middle", 100, 0), ("urgent", 600, 1)):
        cluster.submit(2_500, id=name, expected_runtime_s=seconds, priority=priority)
    assert cluster.ledger.queue()[0].allocation_id == "urgent"
    started = []
    ends = "other_holder"
    for _ in range(4):
        (granted,) = cluster.ends(ends)
        started.append(granted)
        ends = granted
    assert started == ["urgent", "short", "middle", "long"]


def test_with_none_nobody_passes_the_first(pools: Pools) -> None:
    cluster = pools(backfill="none")
    cluster.node(lease_s=AGES)
    cluster.running(6_000, id="holder")
    cluster.submit(8_000, id="big")
    for i in range(5):
        assert cluster.submit(1_000, id=f"small_{i}").allocation.state.value == "waiting"
    assert cluster.ticks(1000) == []
    assert cluster.ends("holder") == ["big", "small_0", "small_1"]


@pytest.mark.parametrize("way", ["release", "cancel", "hold"])
def test_with_none_the_next_goes_where_it_fits_once_the_first_has_gone(pools: Pools, way: str) -> None:
    """Room that it has had all along, on a node where nothing changed."""
    cluster = pools(backfill="none")
    cluster.node("n1", gpus=(10_000,), lease_s=AGES)
    cluster.running(10_000, id="holder")
    cluster.submit(10_000, id="first")
    cluster.node("n2", gpus=(4_000,), lease_s=AGES)
    cluster.submit(4_000, id="next")
    assert cluster.state("next") == "waiting"
    if way == "release":
        assert cluster.ends("holder") == ["first", "next"]
    elif way == "cancel":
        cluster.ledger.cancel("first")
        assert cluster.ticks(1) == ["next"]
    else:
        cluster.ledger.hold("first")
        assert cluster.ticks(1) == ["next"]


def stream(cluster: LedgerPool, seconds: int) -> float | None:
    """Small tasks of two seconds on half a device each, one a second, always two more waiting. When ``big`` starts."""
    cluster.node(gpus=(10_000,), slots=4, lease_s=AGES)
    began = cluster.at
    running = ["s0", "s1"]
    for name in running:
        cluster.running(5_000, id=name, task_name="small")
    cluster.submit(10_000, id="big")
    for i in (2, 3):
        cluster.submit(5_000, id=f"s{i}", task_name="small")
    i = 4
    while cluster.at - began < seconds:
        cluster.at += 1
        cluster.submit(5_000, id=f"s{i}", task_name="small")
        i += 1
        granted = cluster.ends(running.pop(0)) if running else []
        granted += cluster.ticks()
        for name in granted:
            if name == "big":
                return cluster.at - began
            cluster.start(cluster.ledger.get(name))
            running.append(name)
    return None


def test_greedy_backfill_starves_the_big_one_in_an_endless_stream(pools: Pools) -> None:
    """The control for the next test: the same stream, and no reservation."""
    assert stream(pools(backfill="greedy"), 600) is None


@pytest.mark.parametrize("limits", [{"max_bypass": 20}, {"max_bypass_s": 30.0}, {"max_bypass": 0}])
def test_under_easy_its_wait_is_bounded(pools: Pools, limits: dict[str, Any]) -> None:
    """By ``max_bypass`` grants (one a second here) or ``max_bypass_s``, then the longest run of a small one (2 s).

    Where run times are known already, by that run alone: the device is kept for it from then on.
    """
    unknown = pools(**limits)
    wait = stream(unknown, 600)
    most = min(limits.get("max_bypass", 600), limits.get("max_bypass_s", 600))
    assert wait is not None
    assert wait <= most + 2 + 1  # a tick is one second away at most

    known = pools(**limits)
    known.node("n0", gpus=(), cores=1, slots=1)
    known.ran("small", 2, 2, 2)
    known.ledger.cordon("n0")
    wait = stream(known, 600)
    assert wait is not None
    assert wait <= 2 + 1


def test_its_wait_is_bounded_though_a_few_of_many_run_for_longer_than_is_usual(pools: Pools) -> None:
    """One in twenty runs for a minute, nine of ten end in two seconds: small ones are let in as if all did.

    Each one that does not puts the time off. That goes on for ``max_bypass_s`` after the first time, and no longer.
    """
    cluster = pools(max_bypass_s=60.0)
    cluster.node(gpus=(10_000,), slots=4, lease_s=AGES)
    cluster.ran("small", *([2] * 10 + [60] + [2] * 19 + [60] + [2] * 9))
    lengths = itertools.cycle([2] * 6 + [60] + [2] * 13)
    names = (f"s{i}" for i in itertools.count())
    ends: list[tuple[float, str]] = []

    def begin(name: str) -> None:
        cluster.start(cluster.ledger.get(name))
        ends.append((cluster.at + next(lengths), name))

    def more() -> None:
        while len(cluster.ledger.queue(10)) < 5:
            name = next(names)
            if cluster.submit(2_500, id=name, task_name="small").allocation.state.value == "granted":
                begin(name)

    more()
    cluster.submit(10_000, id="big")
    due = math.inf
    while cluster.state("big") == "waiting":
        more()
        if due == math.inf and (kept := cluster.reserved()).get("id") == "big":
            due = float(kept["at"]) / 1000
            assert due - cluster.at <= 60
        assert cluster.at <= due + 60 + 60 + 1, "the time first said, max_bypass_s, the longest run, a tick"
        cluster.at += 1
        granted = cluster.ticks()
        for when, name in sorted(ends):
            if when <= cluster.at:
                ends.remove((when, name))
                granted += cluster.ends(name)
        for name in granted:
            if name != "big":
                begin(name)
    assert cluster.at > due, "the stream does put it off"
