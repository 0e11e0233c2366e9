"""Strategies: what each takes, those that a user registers, and those that are not known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from celery_allocator.errors import SettingsError
from celery_allocator.ledger import Ledger, Options, keys
from celery_allocator.ledger.strategies import read_strategies
from celery_allocator.model import State, Strategy
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool

MINE = Strategy("mine")
#: The node with the least RAM left.
LEAST_RAM = "local function score(view, taken, need) return need.r - view.r end\nreturn { score = score }\n"


def places(cluster: LedgerPool, count: int, gpu: int = 0, strategy: Strategy = MINE, cores: int = 1) -> list[str]:
    held = [cluster.submit(gpu, cores, strategy=strategy).allocation for _ in range(count)]
    return [f"{a.node}/{a.device_id}" for a in held]


def registering(client: redis.Redis, pool: str, source: str) -> LedgerPool:
    return LedgerPool(client, pool, Options(strategies=(("mine", source),)))


@pytest.fixture
def tried(ledger_client: redis.Redis, pool: str) -> Iterator[LedgerPool]:
    cluster = registering(ledger_client, pool, LEAST_RAM)
    yield cluster
    assert_right(cluster.ledger)


# --- spread


def test_spread_takes_the_most_memory_left_then_the_emptiest_node_then_the_first(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(8_000,), cores=8)
    cluster.node("n2", gpus=(8_000, 8_000), cores=8)
    assert places(cluster, 6, 2_000, Strategy.SPREAD) == [
        "n2/gpu_0",  # 8,000 left as elsewhere, on the node with more in all; of two equals the first
        "n2/gpu_1",  # 8,000 left as on n1, and 14,000 beside 8,000 in all
        "n1/gpu_0",
        "n2/gpu_0",  # all have 6,000 left
        "n2/gpu_1",
        "n1/gpu_0",
    ]
    assert_right(cluster.ledger)


def test_spread_passes_over_the_emptiest_device_where_its_node_has_no_room(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(16_000, 16_000), cores=2)
    cluster.by_hand(0, 1)
    cluster.node("n2", gpus=(8_000, 12_000, 12_000), cores=8)
    assert places(cluster, 3, 2_000, Strategy.SPREAD, cores=2) == ["n2/gpu_1", "n2/gpu_2", "n2/gpu_1"]
    assert cluster.submit(16_000, 2, strategy=Strategy.SPREAD).allocation.state is State.WAITING
    assert_right(cluster.ledger)


def test_spread_of_cpu_work_takes_the_node_with_the_most_cores(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(), cores=4)
    cluster.node("n2", gpus=(8_000,), cores=6)
    assert places(cluster, 4, strategy=Strategy.SPREAD) == ["n2/cpu", "n2/cpu", "n1/cpu", "n2/cpu"]


# --- fgd (the reference of the property test works out its whole formula; here is what it is for)


def popular(cluster: LedgerPool, shapes: dict[int, int], strategy: Strategy = Strategy.FGD) -> None:
    """So many submissions of each amount of GPU memory; they end at once."""
    for gpu, count in shapes.items():
        for _ in range(count):
            held = cluster.submit(gpu, strategy=strategy).allocation
            cluster.ledger.cancel(held.allocation_id)


def demand(cluster: LedgerPool) -> dict[str, int]:
    found = cluster.ledger.client.zrange(keys.key(cluster.ledger.pool, "demand"), 0, -1, withscores=True)
    return {member.decode(): round(score) for member, score in found}


def test_fgd_leaves_what_is_popular_its_room(cluster: LedgerPool) -> None:
    """Of two GPUs a task of 4,000 MB takes the one where 6,000 MB would not fit any more anyway."""
    cluster.node(gpus=(16_000, 16_000), cores=16)
    cluster.by_hand(8_000, 0, 1, id="one")
    cluster.by_hand(6_000, 0, 1, id="two", strategy=Strategy.SPREAD)
    assert [cluster.ledger.get(name).device_id for name in ("one", "two")] == ["gpu_0", "gpu_1"]
    popular(cluster, {5_000: 9, 1_000: 1})
    # 8,000 and 10,000 are free. 4,000 on gpu_0 would leave 4,000 there, of no use to most; 3,000 leaves just enough.
    assert places(cluster, 1, 4_000, Strategy.FGD) == ["n1/gpu_1"]
    assert places(cluster, 1, 3_000, Strategy.FGD) == ["n1/gpu_0"]


def test_best_fit_would_not_have(cluster: LedgerPool) -> None:
    cluster.node(gpus=(16_000, 16_000), cores=16)
    cluster.by_hand(8_000, 0, 1)
    cluster.by_hand(6_000, 0, 1, strategy=Strategy.SPREAD)
    assert places(cluster, 1, 4_000, Strategy.BEST_FIT) == ["n1/gpu_0"]


def test_fgd_keeps_cpu_work_from_nodes_whose_gpus_it_would_strand(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(16_000,), cores=4)
    cluster.node("n2", gpus=(), cores=8)
    popular(cluster, {8_000: 10})
    assert places(cluster, 2, strategy=Strategy.FGD, cores=4) == ["n2/cpu", "n2/cpu"]
    assert places(cluster, 1, strategy=Strategy.BEST_FIT, cores=4) == ["n1/cpu"]


def test_fgd_learns_from_what_it_is_asked_for_and_from_nothing_else(cluster: LedgerPool) -> None:
    cluster.node()
    popular(cluster, {1_000: 3, 2_000: 2})
    popular(cluster, {3_000: 5}, Strategy.BEST_FIT)
    cluster.submit(4_000, 9, strategy=Strategy.FGD, on_never="wait")  # waits: asked for all the same
    for _ in range(3):  # a repeated call counts once
        cluster.submit(0, 2, 5, strategy=Strategy.FGD, id="again")
    assert demand(cluster) == {"1000:1:1": 3, "2000:1:1": 2, "4000:9:1": 1, "0:2:1": 1}


def test_what_fgd_remembers_has_an_end_and_fades(cluster: LedgerPool) -> None:
    cluster.node(gpus=(100_000,), cores=8)
    popular(cluster, dict.fromkeys(range(1, 301), 1))
    assert len(demand(cluster)) == 256
    assert "300:1:1" in demand(cluster)
    assert "1:1:1" not in demand(cluster)
    client, meta = cluster.ledger.client, keys.key(cluster.ledger.pool, "meta")
    client.hset(meta, "demand", "2e100")  # after a very long time
    popular(cluster, {7: 1})
    assert float(client.hget(meta, "demand") or 0) == pytest.approx(1.0005)
    assert client.zscore(keys.key(cluster.ledger.pool, "demand"), "300:1:1") == pytest.approx(0, abs=1e-90)
    popular(cluster, {7: 1})
    assert places(cluster, 1, 7, Strategy.FGD) == ["n1/gpu_0"]


def test_unlike_gpus_are_compared_by_their_share(cluster: LedgerPool) -> None:
    """The same 4,000 MB are half of one GPU and a tenth of the other: what is lost there is less."""
    cluster.node("n1", gpus=(8_000,))
    cluster.node("n2", gpus=(40_000,))
    popular(cluster, {8_000: 1})
    assert places(cluster, 1, 4_000, Strategy.FGD) == ["n2/gpu_0"]
    cluster.node("n2", gpus=(41_000,))  # grew: its node knows
    assert_right(cluster.ledger)
    assert cluster.ledger.repair().left == ()
    assert_right(cluster.ledger)


# --- registered ones


def test_a_registered_strategy_places(tried: LedgerPool) -> None:
    tried.node("n1", gpus=(8_000,), ram=64_000)
    tried.node("n2", gpus=(8_000,), ram=32_000)
    tried.node("n3", gpus=(8_000,), ram=32_000)
    assert places(tried, 3, 4_000) == ["n2/gpu_0", "n2/gpu_0", "n3/gpu_0"]
    assert places(tried, 1) == ["n2/cpu"]
    assert tried.ledger.get("a1").strategy == MINE
    assert tried.ledger.get("a1").strategy.value == "mine"


def test_it_also_decides_when_something_is_freed(ledger_client: redis.Redis, pool: str) -> None:
    tried = registering(
        ledger_client, pool, "return { score = function(view, taken) return taken[1] and view.mem[taken[1]] or 0 end }"
    )
    tried.node(gpus=(8_000, 24_000), cores=4)
    tried.by_hand(0, 4, id="cores")
    tried.submit(1_000, strategy=MINE)
    tried.ledger.cancel("cores")
    assert tried.ledger.get("a1").device_id == "gpu_1"


def test_it_may_have_an_index_and_may_learn(ledger_client: redis.Redis, pool: str) -> None:
    tried = registering(
        ledger_client,
        pool,
        "local function score() return 0 end\n"
        'local function learn(need) event("learnt", need.g, "") end\n'
        "return { score = score, find = find_emptiest, learn = learn }",
    )
    tried.node(gpus=(8_000, 24_000), cores=4)
    assert places(tried, 1, 1_000) == ["n1/gpu_1"]
    learnt = [fields["id"] for _, fields in tried.ledger.events() if fields["event"] == "learnt"]
    assert learnt == ["1000"]


def test_who_did_not_register_it_places_by_best_fit_and_can_read_it(tried: LedgerPool) -> None:
    tried.node("n1", gpus=(8_000,), ram=32_000)
    tried.node("n2", gpus=(6_000,), ram=64_000)
    tried.ledger.pause(stop=True)
    tried.submit(4_000, strategy=MINE)
    other = Ledger(tried.ledger.client, tried.ledger.pool, clock=lambda: tried.at)
    assert [a.strategy.value for a in other.queue()] == ["mine"]
    other.pause(stop=False)
    assert other.get("a1").node == "n2"
    assert places(tried, 1, 4_000) == ["n1/gpu_0"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("local x = \n-- a comment\nreturn {", "line 3: unexpected symbol near 'return'"),
        ("-- nothing but a comment", "it returns a nil"),
        ("return 3", "it returns a number"),
        ("return {}", "no function score(view, taken, need)"),
        ("return { score = 1 }", "no function score"),
        ("return { score = function() return 1 end, find = 1 }", "find is no function"),
        ("return { score = function() return 1 end, learn = 1 }", "learn is no function"),
        ("return { score = function() end }", "returns nil, and must return a number"),
        ("return { score = function() return 0 / 0 end }", "and must return a number"),
        ("\n\nreturn { score = function() return nowhere end }", "line 3:"),
        ("return { score = function(view) return view.x.y end }", "line 1: attempt to index field 'x'"),
        ("return { score = function() call('SET', K.tick, 1) return 1 end }", "it calls SET, and may only read"),
        ("return { score = function() return call('GET', K.nonsense) end }", "K.nonsense"),
        (
            "return { score = function() return 1 end, find = function() return 1 end }",
            "find(need, cache) returns a number",
        ),
        ("return { score = function() return 1 end, find = function() error('no') end }", "find(need, cache) fails"),
    ],
)
def test_what_is_wrong_with_it_is_said_before_it_places(
    ledger_client: redis.Redis, pool: str, source: str, problem: str
) -> None:
    cluster = registering(ledger_client, pool, source)
    with pytest.raises(SettingsError, match="allocator_strategies") as caught:
        cluster.ledger.try_strategies()
    assert problem in str(caught.value)
    assert "'mine'" in str(caught.value)
    with pytest.raises(SettingsError, match="allocator_strategies"):
        cluster.node()
    assert cluster.ledger.snapshot().nodes == ()


def test_files_are_read_from_a_path_and_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "house_rules"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.lua").write_text("return 1")
    monkeypatch.syspath_prepend(tmp_path)
    path = str(package / "mine.lua")
    assert read_strategies({"a": path, "b": "house_rules:mine.lua"}) == (("a", "return 1\n"), ("b", "return 1\n"))


@pytest.mark.parametrize("where", ["nowhere.lua", "no_such_package:mine.lua", "celery_allocator:no.lua", "a:b:c", ":x"])
def test_a_file_that_is_not_there_is_named(where: str) -> None:
    with pytest.raises(SettingsError, match="ALLOCATOR_STRATEGIES") as caught:
        read_strategies({"mine": where})
    assert repr(where) in str(caught.value)
    assert "'mine'" in str(caught.value)
