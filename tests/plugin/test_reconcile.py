"""What is used beyond claims, worked out of single looks; and what of it a worker tells, over a real ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis
from celery import Celery

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import discover, nvml
from celery_allocator.ledger import Grant
from celery_allocator.model import (
    Allocation,
    DeviceInventory,
    Kind,
    NodeInventory,
    NodeState,
    RamUse,
    Requirements,
    State,
    Strategy,
    TaskUse,
    Withheld,
    WorkerUse,
)
from celery_allocator.plugin import reconcile
from celery_allocator.plugin.beyond import Beyond, beyond
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.reconcile import Reconciler
from celery_allocator.plugin.report import Reporter
from celery_allocator.settings import Settings
from tests.support.ledger_pool import LedgerPool

GPU = DeviceInventory("gpu_0", 0, "GPU-a", "test", 10_000, (0, 1, 2))
NODE = NodeInventory("n1", (0, 1, 2, 3), 16_000, (GPU,))


class Request:
    """Stands for Celery's."""


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

    def __init__(
        self,
        cluster: LedgerPool,
        monkeypatch: pytest.MonkeyPatch,
        inventory: NodeInventory = NODE,
        **settings: Any,
    ) -> None:
        cluster.node(gpus=(10_000,), ram=16_000, cores=4, slots=1)
        self.cluster, self.calls = cluster, 0
        self.holdings = Holdings()
        self.meter = Meter(None, self.holdings.all, 0)
        self.reporter = Reporter(Celery("test"), "w.n1.gpu_0", inventory, "gpu_0", "q", 60.0, lambda _: None)
        self.reconciler = Reconciler(replace(Settings(), **settings), self.meter, self.reporter, self.holdings)
        #: The cores that the host offers now, or what is raised.
        self.cores: Any = NODE.cpu_cores
        real = cluster.ledger.withhold

        def withhold(*args: Any, **named: Any) -> Any:
            self.calls += 1
            return real(*args, **named)

        monkeypatch.setattr(cluster.ledger, "withhold", withhold)
        monkeypatch.setattr(reconcile, "cores_now", self._cores_now)

    def _cores_now(self, _: Settings) -> Any:
        if isinstance(self.cores, Exception):
            raise self.cores
        return self.cores

    def looks(self, gpu: Withheld | None = None, ram: RamUse | None = None) -> None:
        self.meter.beyond = Beyond(gpu, ram)

    def begins(self, gpu: Withheld | None = None, ram: RamUse | None = None) -> list[str]:
        self.looks(gpu, ram)
        return self._ids(self.reconciler.before_registering(self.cluster.ledger, "one"))

    def tell(self, gpu: Withheld | None = None, ram: RamUse | None = None) -> list[str]:
        self.looks(gpu, ram)
        return self._ids(self.reconciler.after_look(self.cluster.ledger, "one"))

    def beat(self) -> list[str]:
        return self._ids(self.reconciler.at_beat(self.cluster.ledger, "one"))

    @staticmethod
    def _ids(grants: tuple[Grant, ...]) -> list[str]:
        return [grant.allocation_id for grant in grants]

    @property
    def withheld(self) -> tuple[int, int]:
        return self.cluster.device("n1/gpu_0").withheld_mb, self.node.ram_withheld_mb

    @property
    def node(self) -> NodeState:
        node = self.cluster.ledger.node("n1")
        assert node is not None
        return node


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    return LedgerPool(ledger_client, pool)


@pytest.fixture
def told(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(cluster, monkeypatch)


def test_the_ledger_is_asked_at_first_and_then_for_what_changes_enough(told: Told) -> None:
    told.begins(Withheld(), RamUse(1_000, 0))
    assert (told.calls, told.withheld) == (1, (0, 1_000))
    # Less than a hundredth of the node's RAM; no GPU memory at all; the same look once more.
    told.tell(Withheld(), RamUse(1_159, 0))
    told.tell(Withheld(), None)
    told.beat()
    assert told.calls == 1
    told.tell(Withheld(), RamUse(1_160, 0))
    assert (told.calls, told.withheld) == (2, (0, 1_160))
    told.tell(None, RamUse(1_160, 0, 160))
    assert (told.calls, told.withheld) == (3, (0, 1_320))
    told.tell(Withheld(3_000))
    told.reconciler.after_look(told.cluster.ledger, "one")
    told.tell(Withheld(3_031))
    assert (told.calls, told.withheld) == (4, (3_000, 1_320))
    # The less goes with the next heartbeat; and as long as something is withheld each asks again.
    told.beat()
    told.beat()
    assert (told.calls, told.withheld) == (6, (3_031, 1_320))
    told.tell(Withheld())
    told.beat()
    assert (told.calls, told.withheld) == (7, (0, 1_320))


def test_what_is_granted_by_that_is_told_back_and_what_is_waited_for(told: Told) -> None:
    told.begins(Withheld(3_000, 2_000))
    told.cluster.submit(8_000)
    assert not told.reconciler.leftover_blocks
    assert told.tell(Withheld(2_000, 2_000)) == []
    assert told.reconciler.leftover_blocks
    assert told.tell(Withheld(2_000)) == ["a1"]
    assert not told.reconciler.leftover_blocks


def test_who_waits_for_leftover_is_found_out_with_the_next_heartbeat(told: Told) -> None:
    told.begins(Withheld(0, 2_000))
    told.cluster.submit(9_000)
    told.beat()
    assert told.reconciler.leftover_blocks
    told.looks(None)
    told.beat()
    assert not told.reconciler.leftover_blocks, "what is not seen is nobody's"
    told.looks(Withheld(0, 2_000))
    told.beat()
    assert told.reconciler.leftover_blocks
    told.cluster.ledger.cancel("a1")
    told.beat()
    assert not told.reconciler.leftover_blocks


def test_a_claim_by_hand_counts_from_the_next_heartbeat_on(told: Told) -> None:
    told.begins(Withheld(4_000))
    by_hand = told.cluster.by_hand(5_000).allocation
    told.beat()
    assert told.withheld[0] == 0
    told.cluster.ledger.release(by_hand.allocation_id)
    told.beat()
    assert told.withheld[0] == 4_000


def test_a_gpu_that_cannot_be_read_leaves_what_was_told(told: Told) -> None:
    told.begins(Withheld(4_000))
    told.tell(None)
    told.beat()
    assert told.withheld[0] == 4_000


def test_ram_that_an_operator_has_named_is_not_reconciled(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(cluster, monkeypatch, ram_mb=16_000)
    told.begins(Withheld(100), RamUse(5_000, 0))
    assert told.withheld == (100, 0)


@pytest.mark.parametrize("why", ["off", "simulated"])
def test_nothing_is_reconciled_where_it_is_off_or_devices_are_simulated(
    cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    made = replace(NODE, devices=(replace(GPU, simulated=why == "simulated"),))
    told = Told(cluster, monkeypatch, made, reconcile=why != "off")
    told.begins(Withheld(100), RamUse(5_000, 0))
    told.cores = (0,)
    told.beat()
    assert (told.calls, told.withheld) == (0, (0, 0))
    assert told.node.cpu_cores == NODE.cpu_cores


# --- cores


def test_cores_that_go_and_come_back_are_told_once(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    told.cluster.submit(100, 4)
    told.cluster.ends("a1")
    told.cores = (1, 3)
    told.beat()
    assert told.node.cpu_cores == (1, 3)
    assert told.reporter.inventory.devices[0].cpu_affinity == (1,)
    told.cluster.submit(100, 3, on_never="wait")
    told.cores = SettingsError("nothing is left")
    for _ in range(2):
        told.beat()
    assert caplog.text.count("nothing is left: the node goes on with the cores that it had") == 1
    told.cores = NODE.cpu_cores
    assert told.beat() == ["a2"]
    assert told.reporter.inventory == NODE


def test_a_task_that_the_solo_pool_has_pinned_the_worker_for_takes_no_cores_away(told: Told) -> None:
    told.meter.one_process = True
    allocation, request = claims(a=(100, 0))[0], Request()
    told.holdings.add(allocation, request)
    told.cores = (0,)
    told.beat()
    assert told.node.cpu_cores == NODE.cpu_cores
    told.holdings.drop(allocation)
    told.beat()
    assert told.node.cpu_cores == (0,)


# --- what a GPU offers


def test_a_margin_of_every_gpu_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "all_devices", lambda: (GPU, replace(GPU, device_id="gpu_1", memory_mb=4_000)))
    assert [d.memory_mb for d in discover(Settings(gpu_margin_mb=500)).devices] == [9_500, 3_500]
    with pytest.raises(SettingsError, match=r"ALLOCATOR_GPU_MARGIN_MB.* is 4000, but gpu_1 has 4000 MB in all"):
        discover(Settings(gpu_margin_mb=4_000))
