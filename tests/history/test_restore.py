"""After a lost ledger."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from celery_allocator.history import History, Recorder, Restorer
from celery_allocator.ledger import Ledger, Options
from celery_allocator.model import Peaks, Quota
from celery_allocator.operations import Actor, Cordon, Drain, Operator
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli import allocator
from tests.support import by_hand
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    made = LedgerPool(ledger_client, pool, Options())
    made.node("n1", (10_000, 8_000), slots=2)
    made.node("n2", (10_000,), slots=2)
    return made


@pytest.fixture
def lost(cluster: LedgerPool, settings: Settings, redis_server: RedisServer) -> Iterator[LedgerPool]:
    """A ledger with a past that was recorded, and that is empty now."""
    for number, seconds in enumerate([3, 5, 11, 2]):
        running = cluster.running(1000, 1, task_name="proj.a" if number % 2 else "proj.b")
        cluster.at += seconds
        cluster.ledger.release(running.allocation_id, running.token, "success")
    cluster.ledger.set_tenant("gone", Quota(3))
    cluster.ledger.set_tenant("gone", None)
    cluster.ledger.set_tenant("team", Quota(1))
    cluster.ledger.set_tenant("team", Quota(2, tasks=7))
    cluster.ledger.set_tenant("", Quota(0.5))
    cluster.ledger.load_tenants({"from-settings": Quota(4), "team": Quota(9)})
    cluster.ledger.cordon("n1")
    cluster.ledger.uncordon("n1/gpu_0")
    cluster.ledger.cordon("n1/gpu_1", drain=True)
    cluster.ledger.cordon("n2/gpu_0")
    cluster.ledger.uncordon("n2")
    cluster.ledger.uncordon("n1/gpu_0")
    cluster.running(9000, 1, id="runs")
    cluster.submit(9000, 1, id="waits")
    cluster.submit(9000, 1, id="later", eta_at=cluster.at + 99)
    means, runtimes = cluster.ledger.learned(), cluster.ledger.runtimes()
    Recorder(lambda: Ledger(redis_server.client(), cluster.ledger.pool), settings).run(threading.Event(), once=True)
    for key in cluster.ledger.client.scan_iter(f"{{allocator:{cluster.ledger.pool}}}:*"):
        cluster.ledger.client.delete(key)
    cluster.means, cluster.runtimes = means, runtimes  # type: ignore[attr-defined]
    yield cluster
    assert cluster.ledger.verify() == []


def states(cluster: LedgerPool) -> dict[str, str]:
    seen = cluster.ledger.snapshot()
    return {**{n.node: n.state for n in seen.nodes}, **{d.key: d.state for d in seen.devices}}


def test_what_the_ledger_had_learned_comes_back(lost: LedgerPool, history: History) -> None:
    assert set(lost.means) == {"proj.a", "proj.b", "*"}  # type: ignore[attr-defined]
    restored = Restorer(history, lost.ledger).apply()
    assert restored.runtimes == pytest.approx(lost.means)  # type: ignore[attr-defined]
    assert lost.ledger.learned() == pytest.approx(lost.means)  # type: ignore[attr-defined]
    # Not the means alone: half and nine of ten of each, as they were.
    assert sorted(lost.ledger.runtimes(), key=str) == sorted(lost.runtimes, key=str)  # type: ignore[attr-defined]
    again = Restorer(history, lost.ledger).apply()
    assert (again.runtimes, set(again.runtimes_kept)) == ({}, set(lost.means))  # type: ignore[attr-defined]


def test_what_the_ledger_has_itself_stays_unless_forced(lost: LedgerPool, history: History) -> None:
    lost.ledger.learn({"proj.a": 99.0})
    assert set(Restorer(history, lost.ledger).apply().runtimes) == {"proj.b", "*"}
    assert lost.ledger.learned()["proj.a"] == 99.0
    Restorer(history, lost.ledger, force=True).apply()
    assert lost.ledger.learned() == pytest.approx(lost.means)  # type: ignore[attr-defined]


def test_what_runs_used_comes_back(
    cluster: LedgerPool, history: History, settings: Settings, redis_server: RedisServer
) -> None:
    ledger = cluster.ledger
    runs = [Peaks(1000 + n, 500 + n, 0.5 + n / 100) for n in range(20)]
    cluster.used("proj.a", *runs, gpu=2000, cores=2, ram=900)
    cluster.used("proj.b", Peaks(ram_mb=70), Peaks())
    failed = cluster.running(task_name="proj.c")
    ledger.release(failed.allocation_id, failed.token, "failure", peaks=runs[0])
    known = ledger.recommend()
    assert [one.task_name for one in known] == ["proj.a", "proj.b"]
    Recorder(lambda: Ledger(redis_server.client(), ledger.pool), settings).run(threading.Event(), once=True)
    ledger.client.delete(f"{{allocator:{ledger.pool}}}:peaks")
    restored = Restorer(history, ledger).apply()
    assert (restored.peaks, restored.peaks_kept) == ({"proj.a": 20, "proj.b": 1}, [])
    assert ledger.recommend() == known
    cluster.used("proj.a", Peaks(9000, 1, 1.0))
    again = Restorer(history, ledger).plan()
    assert (again.peaks, again.peaks_kept) == ({}, ["proj.a", "proj.b"])
    forced = Restorer(history, ledger, force=True).apply()
    assert forced.peaks == {"proj.a": 20, "proj.b": 1}
    (first,) = ledger.recommend("proj.a")
    assert first == known[0]


def quotas(cluster: LedgerPool) -> dict[str, tuple[Quota, str]]:
    return {tenant.name: (tenant.quota, tenant.by) for tenant in cluster.ledger.tenants() if tenant.by}


def test_the_quotas_that_operators_had_set_come_back(lost: LedgerPool, history: History) -> None:
    given = {"": (Quota(0.5), "operator"), "team": (Quota(2, tasks=7), "operator")}
    assert set(Restorer(history, lost.ledger).plan().quotas) == {"", "team"} and quotas(lost) == {}
    lost.ledger.load_tenants({"team": Quota(9)})  # a worker was first: what an operator has said counts more
    restored = Restorer(history, lost.ledger).apply()
    assert (set(restored.quotas), quotas(lost)) == ({"", "team"}, given)
    assert (Restorer(history, lost.ledger).plan().quotas, restored.quotas_kept) == ({}, [])
    lost.ledger.set_tenant("team", Quota(5))
    again = Restorer(history, lost.ledger).apply()
    assert (again.quotas, again.quotas_kept, quotas(lost)["team"]) == ({}, ["team"], (Quota(5), "operator"))
    Restorer(history, lost.ledger, force=True).apply()
    assert quotas(lost) == given


def test_what_operators_had_closed_is_closed_again(lost: LedgerPool, history: History) -> None:
    early = Restorer(history, lost.ledger).apply()
    assert early.unknown == {"n1": "cordoned", "n1/gpu_1": "draining"} and early.closed == {}
    lost.node("n1", (10_000, 8_000), slots=2)
    lost.node("n2", (10_000,), slots=2)
    plan = Restorer(history, lost.ledger).plan()
    assert set(states(lost).values()) == {"ready"}
    restored = Restorer(history, lost.ledger).apply()
    assert restored.closed == plan.closed
    found = states(lost)
    assert (found["n1"], found["n1/cpu"], found["n1/gpu_1"]) == ("cordoned", "cordoned", "draining")
    assert (found["n2"], found["n2/gpu_0"]) == ("ready", "ready")
    assert found["n1/gpu_0"] == "ready"
    assert Restorer(history, lost.ledger).plan().closed == {}


def test_why_it_was_closed_comes_back_too(
    cluster: LedgerPool, settings: Settings, redis_server: RedisServer, history: History
) -> None:
    """Of each device: one that was closed before its node, and with it, and one after it; and what an undo left."""

    def operator(reason: str) -> Operator:
        return Operator(cluster.ledger, Actor("ada", "test", reason))

    operator("moved to another rack").run(Cordon("n1"))
    operator("Xid 79").run(Drain("n1/gpu_0"))
    operator("a fan").run(Cordon("n1/gpu_1"))
    operator("its driver").run(Cordon("n2/gpu_0"))
    mistaken = operator("a mistake").run(Drain("n2")).entry
    assert mistaken is not None
    operator("not this one").undo(mistaken)
    before = {device.key: (device.state, device.reason) for device in cluster.ledger.snapshot().devices}
    assert before == {
        "n1/gpu_0": ("draining", "Xid 79"), "n1/gpu_1": ("cordoned", "a fan"),
        "n1/cpu": ("cordoned", "moved to another rack"),
        "n2/gpu_0": ("cordoned", "its driver"), "n2/cpu": ("ready", ""),
    }  # fmt: skip
    Recorder(lambda: Ledger(redis_server.client(), cluster.ledger.pool), settings).run(threading.Event(), once=True)
    assert Restorer(history, cluster.ledger).plan().closed == {}
    for key in cluster.ledger.client.scan_iter(f"{{allocator:{cluster.ledger.pool}}}:*"):
        cluster.ledger.client.delete(key)
    cluster.node("n1", (10_000, 8_000), slots=2)
    cluster.node("n2", (10_000,), slots=2)
    restored = Restorer(history, cluster.ledger).apply()
    after = {device.key: (device.state, device.reason) for device in cluster.ledger.snapshot().devices}
    assert after == before
    assert restored.reasons["n1"] == "moved to another rack"
    # What somebody has closed since has the reason that it has.
    operator("smoke").run(Cordon("n1/gpu_1"))
    assert Restorer(history, cluster.ledger).apply().closed == {}
    assert cluster.device("n1/gpu_1").reason == "smoke"


def test_a_pool_that_an_operator_paused_is_paused_again(
    cluster: LedgerPool, settings: Settings, redis_server: RedisServer, history: History
) -> None:
    def record() -> None:
        Recorder(lambda: Ledger(redis_server.client(), cluster.ledger.pool), settings).run(threading.Event(), once=True)

    cluster.ledger.pause(stop=True)
    record()
    for key in cluster.ledger.client.scan_iter(f"{{allocator:{cluster.ledger.pool}}}:*"):
        cluster.ledger.client.delete(key)
    assert Restorer(history, cluster.ledger).plan().stopped is True
    assert cluster.ledger.snapshot().paused == ""
    Restorer(history, cluster.ledger).apply()
    assert cluster.ledger.snapshot().paused == "stopped"
    assert Restorer(history, cluster.ledger).plan().stopped is None
    record()
    cluster.ledger.pause(stop=False)
    record()
    assert Restorer(history, cluster.ledger, force=True).plan().stopped is None
    cluster.ledger.pause(stop=True)
    assert Restorer(history, cluster.ledger).plan().stopped is None
    assert Restorer(history, cluster.ledger, force=True).apply().stopped is False


def test_what_was_closed_since_stays_unless_forced(lost: LedgerPool, history: History) -> None:
    lost.node("n2", (10_000,), slots=2)
    lost.ledger.cordon("n2")
    assert Restorer(history, lost.ledger).apply().differing == {"n2": "ready"}
    assert states(lost)["n2"] == "cordoned"
    Restorer(history, lost.ledger, force=True).apply()
    assert states(lost)["n2"] == "ready"


def test_what_was_in_flight_is_told(lost: LedgerPool, history: History) -> None:
    found = Restorer(history, lost.ledger).plan().in_flight
    assert [(row.allocation_id, row.state) for row in found] == [
        ("later", "delayed"), ("runs", "running"), ("waits", "granted")
    ]  # fmt: skip
    # One that is submitted again is not lost any more.
    lost.submit(9000, 1, id="waits")
    assert {row.allocation_id for row in Restorer(history, lost.ledger).plan().in_flight} == {"later", "runs"}


def test_nothing_is_in_flight_while_the_ledger_lives(
    cluster: LedgerPool, settings: Settings, redis_server: RedisServer, history: History
) -> None:
    cluster.running(9000, 1)
    cluster.submit(9000, 1)
    cluster.ledger.cordon("n1")
    Recorder(lambda: Ledger(redis_server.client(), cluster.ledger.pool), settings).run(threading.Event(), once=True)
    found = Restorer(history, cluster.ledger).plan()
    assert (found.in_flight, found.closed, found.differing, found.unknown) == ([], {}, {}, {})


def test_the_commands(redis_server: RedisServer, pool: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = by_hand.environment(redis_server, pool, history_backend_url=database_url)

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(allocator, args, env=env, prog_name="celery-allocator")
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return json.loads(result.stdout) if "--json" in args else result.stdout + result.stderr

    assert run("history-db", "current", "--json")["version"] is None
    assert run("restore", "--json", code=1)["error"]["code"] == "history_unavailable"
    held = run("allocate", "t", "--task-type=processing", "--json")
    recorded = run("recorder", "--once", "--json")
    assert (recorded["success"], recorded["lag"], recorded["gaps"]) == (True, 0, 0)
    assert recorded["recorded"] >= 2
    assert f"at {recorded['position']}, 0 behind, 0 recorded" in run("recorder", "--once")
    assert run("history-db", "current", "--json")["version"] == "0003"
    assert "0003" in run("history-db", "upgrade")

    for key in redis_server.client().scan_iter(f"{{allocator:{pool}}}:*"):
        redis_server.client().delete(key)
    told = run("restore", "--dry-run", "--json")
    assert [row["allocation_id"] for row in told["in_flight"]] == [held["allocation_id"]]
    assert "1 allocations had not ended" in run("restore")
    assert "base" in run("history-db", "downgrade", "base", "--yes")
