"""What is used beyond claims, worked out of single looks; and what of it a worker tells, over a real ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import discover, nvml, simulated
from celery_allocator.model import (
    Allocation,
    DeviceInventory,
    Kind,
    NodeInventory,
    RamUse,
    Requirements,
    State,
    Strategy,
    TaskUse,
    Withheld,
    WorkerUse,
)
from celery_allocator.plugin import reconcile
from celery_allocator.plugin.reconcile import Beyond, Reconciler, beyond
from celery_allocator.settings import Settings
from tests.support.ledger_pool import LedgerPool

GPU = DeviceInventory("gpu_0", 0, "GPU-a", "test", 10_000, (0, 1, 2))
NODE = NodeInventory("n1", (0, 1, 2, 3), 16_000, (GPU,))


def claims(**amounts: tuple[int, int]) -> list[Allocation]:
    """Running tasks by id, with the GPU memory and the RAM that each claims."""
    return [
        Allocation(
            name, name, "work", State.RUNNING, Kind.TASK, Requirements(gpu, 1, ram), Strategy.BEST_FIT, submitted_at=0.0
        )
        for name, (gpu, ram) in amounts.items()
    ]


def use(used: int | None, ours: int | None, *tasks: TaskUse, **more: Any) -> WorkerUse:
    return WorkerUse(0.0, gpu_memory_used_mb=used, gpu_memory_ours_mb=ours, tasks=tasks, **more)


def test_nothing_is_beyond_what_is_claimed_and_not_used_yet() -> None:
    """So a grant that has just been made, and has nothing of its memory yet, changes nothing."""
    none, some = use(0, 0), use(1_500, 1_500, TaskUse("a", 1_500))
    for look in (none, some):
        assert beyond(look, claims(a=(2_000, 0), b=(6_000, 0))).gpu == Withheld()


@pytest.mark.parametrize("foreign", [0, 65, 3_000])
@pytest.mark.parametrize("leftover", [0, 10, 500])
@pytest.mark.parametrize("uses", [(0, 0), (2_000, 100), (2_100, 5_000)])
def test_usable_is_the_less_of_what_the_ledger_and_the_driver_have(
    foreign: int, leftover: int, uses: tuple[int, int]
) -> None:
    """The formula as it is derived, against the one that the worker uses."""
    total, held = 20_000, {"a": 2_000, "b": 4_000}
    ours = leftover + sum(uses)
    found = beyond(
        use(foreign + ours, ours, TaskUse("a", uses[0]), TaskUse("b", uses[1])), claims(a=(2_000, 0), b=(4_000, 0))
    ).gpu
    unused = sum(max(0, claim - used) for claim, used in zip(held.values(), uses, strict=True))
    ledger_free, driver_free = total - sum(held.values()), total - foreign - ours
    assert found is not None
    assert ledger_free - found.total_mb == min(ledger_free, driver_free - unused)
    assert (found.foreign_mb, found.leftover_mb) == (foreign, leftover)


def test_the_drivers_bookkeeping_is_nobodys() -> None:
    assert beyond(use(64, 0), []).gpu == Withheld()
    assert beyond(use(65, 0), []).gpu == Withheld(65)
    assert beyond(use(2_064, None), claims(a=(2_000, 0))).gpu == Withheld(pids_hidden=True)


def test_where_process_ids_are_hidden_the_claims_count_as_used() -> None:
    assert beyond(use(5_000, None), claims(a=(2_000, 0), b=(1_000, 0))).gpu == Withheld(2_000, pids_hidden=True)
    assert beyond(use(1_000, None), claims(a=(2_000, 0))).gpu == Withheld(pids_hidden=True)


def test_what_a_task_holds_that_has_ended_meanwhile_is_beyond_all_claims() -> None:
    assert beyond(use(700, 700, TaskUse("gone", 700)), []).gpu == Withheld(0, 0, 700)
    assert beyond(use(700, 700), []).gpu == Withheld(0, 700)


def test_one_process_for_all_tasks_keeps_what_is_left_for_the_next() -> None:
    assert beyond(use(5_000, 4_000), [], one_process=True).gpu == Withheld(1_000)
    held = claims(a=(1_000, 0), b=(1_500, 0))
    assert beyond(use(5_000, 4_000), held, one_process=True).gpu == Withheld(1_000, 0, 1_500)
    assert beyond(use(5_000, 2_000), held, one_process=True).gpu == Withheld(3_000)


def test_a_gpu_that_was_not_read_and_one_that_is_not_there() -> None:
    assert beyond(use(None, None), claims(a=(2_000, 0))) == Beyond(None, None)


def test_ram_beyond_what_is_reserved_and_each_page_that_children_share_once() -> None:
    look = use(None, None, TaskUse("a", None, 900), TaskUse("b", None, 300), ram_used_mb=8_000, ram_ours_mb=1_400)
    held = claims(a=(0, 500), b=(0, 500))
    assert beyond(look, held).ram == RamUse(8_000, 1_400, 400)
    # A main process of 100 MB and three children: each counts these as its own.
    assert beyond(look, held, reserved_ram_mb=1_000, shared_ram_mb=100, processes=4).ram == RamUse(7_000, 1_100, 300)
    assert beyond(look, held, reserved_ram_mb=9_000).ram == RamUse(0, 1_400, 400)
    assert beyond(look, held, one_process=True).ram == RamUse(8_000, 1_400, 400)
    assert beyond(look, [], one_process=True).ram == RamUse(8_000, 1_400, 0)


# --- what is told


class Told:
    """A worker's reconciler over a real ledger, and how often it asked that."""

    def __init__(self, cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        cluster.node(gpus=(10_000,), ram=16_000, slots=1)
        self.cluster, self.calls = cluster, 0
        self.reconciler = Reconciler(replace(Settings(), **settings), "w.n1.gpu_0", NODE, "gpu_0")
        real = cluster.ledger.withhold

        def withhold(*args: Any, **named: Any) -> Any:
            self.calls += 1
            return real(*args, **named)

        monkeypatch.setattr(cluster.ledger, "withhold", withhold)

    def tell(self, gpu: Withheld | None = None, ram: RamUse | None = None, **how: bool) -> list[str]:
        grants = self.reconciler.tell(self.cluster.ledger, "one", Beyond(gpu, ram), **how)
        return [grant.allocation_id for grant in grants]

    @property
    def withheld(self) -> tuple[int, int]:
        node = self.cluster.ledger.node("n1")
        assert node is not None
        return self.cluster.device("n1/gpu_0").withheld_mb, node.ram_withheld_mb


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    return LedgerPool(ledger_client, pool)


@pytest.fixture
def told(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(cluster, monkeypatch)


def test_the_ledger_is_asked_at_first_and_then_where_there_is_something(told: Told) -> None:
    told.tell(Withheld(), RamUse(1_000, 0), registering=True)
    assert (told.calls, told.withheld) == (1, (0, 1_000))
    # Less than a hundredth of the node's RAM, or of no GPU memory at all.
    told.tell(Withheld(), RamUse(1_159, 0))
    told.tell(Withheld(), None)
    assert told.calls == 1
    told.tell(Withheld(), RamUse(1_160, 0))
    assert (told.calls, told.withheld) == (2, (0, 1_160))
    told.tell(None, RamUse(1_160, 0, 160))
    assert (told.calls, told.withheld) == (3, (0, 1_320))
    # As long as something is withheld, somebody else's claims may come and go.
    for _ in range(2):
        told.tell(Withheld(3_000), None)
    assert (told.calls, told.withheld) == (5, (3_000, 1_320))
    told.tell(Withheld(), None)
    told.tell(Withheld(), None)
    assert (told.calls, told.withheld) == (6, (0, 1_320))


def test_what_is_granted_by_that_is_told_back_and_what_is_waited_for(told: Told) -> None:
    told.tell(Withheld(3_000, 2_000), None, registering=True)
    told.cluster.submit(8_000)
    assert not told.reconciler.leftover_blocks
    assert told.tell(Withheld(2_000, 2_000)) == []
    assert told.reconciler.leftover_blocks
    assert told.tell(Withheld(2_000)) == ["a1"]
    assert not told.reconciler.leftover_blocks


def test_a_claim_by_hand_counts_from_the_next_look_on(told: Told) -> None:
    told.tell(Withheld(4_000), registering=True)
    by_hand = told.cluster.by_hand(5_000).allocation
    told.tell(Withheld(4_000))
    assert told.withheld[0] == 0
    told.cluster.ledger.release(by_hand.allocation_id)
    told.tell(Withheld(4_000))
    assert told.withheld[0] == 4_000


def test_a_gpu_that_cannot_be_read_leaves_what_was_told(told: Told) -> None:
    told.tell(Withheld(4_000), registering=True)
    told.tell(None)
    assert told.withheld[0] == 4_000


def test_ram_that_an_operator_has_named_is_not_reconciled(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(cluster, monkeypatch, ram_mb=16_000)
    told.tell(Withheld(100), RamUse(5_000, 0), registering=True)
    assert told.withheld == (100, 0)


@pytest.mark.parametrize("why", ["off", "simulated"])
def test_nothing_is_reconciled_where_it_is_off_or_devices_are_simulated(
    cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    told = Told(cluster, monkeypatch, reconcile=why != "off")
    if why == "simulated":
        inventory = replace(NODE, devices=simulated.devices("sim:1x10000", "n1"))
        told.reconciler = Reconciler(Settings(), "w.n1.gpu_0", inventory, "gpu_0")
    told.tell(Withheld(100), RamUse(5_000, 0), registering=True)
    assert (told.calls, told.withheld) == (0, (0, 0))
    monkeypatch.setattr(reconcile, "cores_now", lambda _: (0,))
    assert told.reconciler.cores() is None


# --- cores


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the first of this list is, are the cores that the host offers now (or what is raised)."""
    current: list[Any] = [(0, 1, 2, 3)]

    def cores_now(_: Settings) -> Any:
        if isinstance(current[0], Exception):
            raise current[0]
        return current[0]

    monkeypatch.setattr(reconcile, "cores_now", cores_now)
    return current


def test_cores_that_go_and_come_back_are_told_once(now: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    reconciler = Reconciler(Settings(), "w", NODE, "gpu_0")
    assert reconciler.cores() is None
    now[0] = (1, 3)
    less = reconciler.cores()
    assert less is not None
    assert (less.cpu_cores, less.devices[0].cpu_affinity) == ((1, 3), (1,))
    assert reconciler.cores() is None
    now[0] = SettingsError("nothing is left")
    assert reconciler.cores() is reconciler.cores() is None
    assert caplog.text.count("nothing is left: the node goes on with the cores that it had") == 1
    now[0] = (0, 1, 2, 3)
    assert reconciler.cores() == NODE


# --- what a GPU offers


def test_a_margin_of_every_gpu_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "all_devices", lambda: (GPU, replace(GPU, device_id="gpu_1", memory_mb=4_000)))
    assert [d.memory_mb for d in discover(Settings(gpu_margin_mb=500)).devices] == [9_500, 3_500]
    with pytest.raises(SettingsError, match=r"ALLOCATOR_GPU_MARGIN_MB.* is 4000, but gpu_1 has 4000 MB in all"):
        discover(Settings(gpu_margin_mb=4_000))
