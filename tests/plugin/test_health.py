"""What a worker does about what it sees of its GPU, over a real ledger; the driver's side is in tests/acceptance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from celery_allocator.errors import GpuLostError, InventoryError, LedgerUnavailable
from celery_allocator.inventory import GpuHealth
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, Kind, NodeInventory, Requirements, State, Strategy
from celery_allocator.operations import Actor, Cordon, Drain, Effect, Operator, Uncordon
from celery_allocator.plugin import health
from celery_allocator.plugin.health import HealthMonitor
from celery_allocator.plugin.holdings import Holding, Holdings

KEY = "host1/gpu_0"
WELL = GpuHealth(0, rows_failed=False, rows_pending=False, recovery="", xids=())
LOST = GpuLostError("GPU is lost")
AWAY = InventoryError("Driver Not Loaded")


class Request:
    """Stands for Celery's."""


class Watched:
    """A monitor whose driver says what it is told to."""

    def __init__(self, ledger: Ledger, node: NodeInventory) -> None:
        self.ledger = ledger
        self.holdings, self.lost, self.effects = Holdings(), list[tuple[str, str]](), list[Effect]()
        self.connect: Callable[[], Ledger] = lambda: ledger
        self.monitor = HealthMonitor(
            "w@host1",
            KEY,
            node.devices[0],
            1.0,
            connect=self._connect,
            settle=self.effects.append,
            holdings=self.holdings.all,
            lose=self._lose,
        )
        self.monitor._watch = self  # type: ignore[assignment]
        self._now: GpuHealth | Exception = WELL

    def _connect(self) -> Ledger:
        return self.connect()

    def _lose(self, holding: Holding, reason: str) -> None:
        self.lost.append((holding.allocation.allocation_id, reason))

    def look(self) -> GpuHealth:
        """As ``GpuWatch``."""
        if isinstance(self._now, Exception):
            raise self._now
        return self._now

    def sees(self, now: GpuHealth | Exception = WELL, times: int = 1) -> tuple[str, str]:
        """Look so often; returns the device's state, and why."""
        self._now = now
        for _ in range(times):
            self.monitor.look()
        return self.state

    @property
    def state(self) -> tuple[str, str]:
        device = next(one for one in self.ledger.snapshot().devices if one.key == KEY)
        return device.state, device.reason

    @property
    def actions(self) -> list[str]:
        return [f"{entry.action} {entry.state}" for entry in reversed(self.ledger.journal())]

    def operator(self, reason: str = "") -> Operator:
        return Operator(self.ledger, Actor("ada", reason=reason))


@pytest.fixture
def gpu(ledger: Ledger, node: NodeInventory) -> Iterator[Watched]:
    made = Watched(ledger, node)
    assert made.sees() == ("ready", "")
    yield made
    assert ledger.verify() == []


def xids(*numbers: int) -> GpuHealth:
    return replace(WELL, xids=numbers)


def test_a_fatal_xid_takes_it_out_once_and_a_programs_never(gpu: Watched) -> None:
    assert gpu.sees(xids(13, 31, 43, 45, 63, 94, 109)) == ("ready", "")
    assert gpu.sees(xids(45, 119, 120)) == ("draining", "Xid 119: GSP RPC timeout; Xid 120: GSP error")
    gpu.sees(xids(119), times=5)
    gpu.sees()
    assert gpu.actions == ["drain done"]
    assert gpu.state == ("draining", "Xid 119: GSP RPC timeout; Xid 120: GSP error")
    entry = gpu.ledger.journal()[0]
    assert (entry.actor, entry.source, entry.args) == ("worker:w@host1", "worker", {"target": KEY})
    assert [effect.entry for effect in gpu.effects] == [entry.number]


def test_what_an_operator_gives_back_is_ready_until_something_new_happens(gpu: Watched) -> None:
    worn = replace(WELL, ecc_uncorrected=1, rows_failed=True, recovery="GPU reset")
    gpu.sees(worn)
    gpu.operator().run(Uncordon(KEY))
    assert gpu.sees(worn, times=3) == ("ready", "")
    assert gpu.sees(replace(worn, ecc_uncorrected=3)) == ("draining", "2 uncorrectable memory errors")
    gpu.operator().run(Uncordon(KEY))
    assert gpu.sees(replace(worn, ecc_uncorrected=3, xids=(79,)))[1] == "Xid 79: GPU has fallen off the bus"


def test_what_the_driver_asks_for_counts_from_the_first_look_and_old_errors_do_not(
    ledger: Ledger, node: NodeInventory
) -> None:
    old = replace(WELL, ecc_uncorrected=7, rows_pending=True)
    assert Watched(ledger, node).sees(old) == ("ready", "")
    assert Watched(ledger, node).sees(replace(old, recovery="node reboot")) == (
        "draining", "the driver asks for: node reboot",
    )  # fmt: skip


def test_a_lost_one_ends_what_runs_there_and_stays_out(gpu: Watched) -> None:
    requests = _running(gpu.holdings, ("mine", "GPU-0", ()))
    assert gpu.sees(LOST) == ("draining", "the GPU is lost: the driver says that it has fallen off the bus")
    assert gpu.lost == [("mine", "its GPU is lost")]
    gpu.sees(LOST)
    gpu.operator().run(Uncordon(KEY))  # by mistake
    assert gpu.sees(LOST)[0] == "draining"
    assert gpu.actions == ["drain done", "uncordon done", "drain done"]
    assert gpu.sees()[0] == "draining"
    gpu.operator().run(Uncordon(KEY))
    assert gpu.sees() == ("ready", "")
    assert gpu.sees(LOST)[0] == "draining"  # once more
    assert requests


def test_a_driver_that_is_away_for_a_moment_costs_nothing(gpu: Watched) -> None:
    for _ in range(3):
        assert gpu.sees(AWAY, times=2) == ("ready", "")
        gpu.sees()
    assert gpu.actions == []
    assert gpu.sees(AWAY, times=3) == ("draining", "the GPU cannot be read: Driver Not Loaded")
    gpu.sees(InventoryError("Unknown Error"), times=3)
    assert gpu.sees() == ("ready", "")
    assert gpu.actions == ["drain undone"]


def test_a_driver_that_is_back_gives_back_what_was_there_before(gpu: Watched) -> None:
    gpu.operator("new cables").run(Drain(KEY))
    assert gpu.sees(AWAY, times=3)[1].startswith("the GPU cannot be read")
    assert gpu.sees() == ("draining", "new cables")
    assert gpu.actions == ["drain done", "drain undone"]


def test_who_acts_meanwhile_has_the_last_word(gpu: Watched) -> None:
    gpu.sees(AWAY, times=3)
    gpu.operator("mine").run(Cordon(KEY))
    assert gpu.sees() == ("cordoned", "mine")
    gpu.operator().run(Uncordon(KEY))
    gpu.sees(AWAY, times=3)
    gpu.operator().undo()  # the worker's
    assert gpu.sees() == ("ready", "")


def test_one_that_could_not_be_read_and_has_failed_stays_out(gpu: Watched) -> None:
    for failed in (LOST, xids(79)):
        gpu.sees(AWAY, times=3)
        reason = gpu.sees(failed)[1]
        assert not reason.startswith("the GPU cannot be read")
        assert gpu.sees() == ("draining", reason)
        gpu.operator().run(Uncordon(KEY))


def test_one_that_has_failed_and_then_cannot_be_read_stays_out(gpu: Watched) -> None:
    gpu.sees(xids(79))
    gpu.sees(AWAY, times=4)
    assert gpu.sees() == ("draining", "Xid 79: GPU has fallen off the bus")
    assert gpu.actions == ["drain done"]


def test_a_worker_that_has_started_again_gives_back_what_it_took(
    gpu: Watched, ledger: Ledger, node: NodeInventory
) -> None:
    gpu.sees(AWAY, times=3)
    assert Watched(ledger, node).sees() == ("ready", "")
    assert gpu.actions == ["drain undone"]
    gpu.sees(xids(79))
    assert Watched(ledger, node).sees(times=2)[0] == "draining"


def test_what_was_seen_while_the_ledger_was_away_is_not_forgotten(ledger: Ledger, node: NodeInventory) -> None:
    gpu = Watched(ledger, node)

    def away() -> Ledger:
        raise LedgerUnavailable("not now")

    gpu.connect = away
    with pytest.raises(LedgerUnavailable):
        gpu.sees(xids(79))
    gpu.connect = lambda: ledger
    assert gpu.sees() == ("draining", "Xid 79: GPU has fallen off the bus")
    gpu.operator().run(Uncordon(KEY))
    gpu.monitor._own_ledger, gpu.connect = None, away
    with pytest.raises(LedgerUnavailable):
        gpu.sees(xids(119))
    gpu.connect = lambda: ledger
    assert gpu.sees() == ("draining", "Xid 119: GSP RPC timeout")


def test_a_task_on_several_gpus_ends_with_any_of_them(gpu: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _running(
        gpu.holdings,
        ("both", "GPU-0", (("gpu_1", "GPU-1"),)),
        ("three", "GPU-0", (("gpu_1", "GPU-1"), ("gpu_2", "GPU-2"))),
        ("mine", "GPU-0", ()),
    )

    def read(uuid: str) -> GpuHealth:
        if uuid == "GPU-2":
            raise LOST
        raise AWAY

    monkeypatch.setattr(health, "read_health", read)
    assert gpu.sees() == ("ready", "")
    assert gpu.lost == [("three", "its GPU is lost")]
    assert requests


def _running(holdings: Holdings, *tasks: tuple[str, str, tuple[tuple[str, str], ...]]) -> list[Any]:
    """Tasks with an id, the UUID of their GPU, and further ones. The caller keeps the requests alive."""
    requests = [Request() for _ in tasks]
    for request, (name, uuid, more) in zip(requests, tasks, strict=True):
        allocation = Allocation(
            *(name, name, "work", State.RUNNING, Kind.TASK, Requirements(), Strategy.BEST_FIT, 0.0),
            device_uuid=uuid,
            more_devices=more,
        )
        holdings.add(allocation, request)
    return requests
