"""The simulator on a real server: small traces whose waits can be worked out by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from celery_allocator.model import DeviceInventory, NodeInventory, Quota, Requirements, Strategy
from celery_allocator.simulator import OPTIONS, Replay, Replayed, TraceTask, figures, replay
from celery_allocator.surfaces.cli import allocator
from tests.support.ledger_checks import assert_empty
from tests.support.processes import clean_environment
from tests.support.waiting import wait_until

Simulate = Callable[..., Replayed]


def node(name: str = "n1", gpus: int = 1, cores: int = 8) -> NodeInventory:
    devices = tuple(DeviceInventory(f"gpu_{i}", i, f"GPU-{name}-{i}", "simulated", 10_000) for i in range(gpus))
    return NodeInventory(name, tuple(range(cores)), 64_000, devices)


def tasks(*rows: tuple[float, float, int]) -> list[TraceTask]:
    """Of submissions, durations and GPU memory."""
    return [TraceTask(submit_s, duration_s, Requirements(memory_mb)) for submit_s, duration_s, memory_mb in rows]


def starts(replayed: Replayed) -> list[float | None]:
    return [run.start_s for run in replayed.runs]


@pytest.fixture
def simulate(ledger_client: redis.Redis, pool: str) -> Simulate:
    """Replay in a pool of its own, and see that nothing is left in it."""
    made = 0

    def run(trace: Sequence[TraceTask], *nodes: NodeInventory, **options: Any) -> Replayed:
        nonlocal made
        made += 1
        simulation = Replay(ledger_client, nodes or (node(),), pool=f"{pool}-{made}", **options)
        replayed = simulation.run(trace)
        assert_empty(simulation.ledger)
        return replayed

    return run


def test_three_tasks_in_a_line(simulate: Simulate) -> None:
    replayed = simulate(tasks((0, 100, 8_000), (10, 50, 8_000), (20, 10, 8_000)))
    assert starts(replayed) == [0, 100, 150]
    found = figures(replayed)
    assert (found.tasks, found.waited, found.never, found.unstarted) == (3, 2, 0, 0)
    assert found.waits is not None
    assert (found.waits.mean_s, found.waits.p50_s, found.waits.p95_s, found.waits.max_s) == (220 / 3, 90, 130, 130)
    assert found.slowdown == pytest.approx((1 + (90 + 50) / 50 + (130 + 10) / 10) / 3)
    assert found.makespan_s == 160
    assert found.gpu_memory_utilisation == pytest.approx(0.8)
    assert found.cpu_utilisation == pytest.approx(1 / 8)
    assert found.fragmentation == 1.0  # what the first leaves free is too little for any
    assert [run.position for run in replayed.runs] == [0, 1, 2]


def test_a_run_below_ten_seconds_counts_as_ten(simulate: Simulate) -> None:
    found = figures(simulate(tasks((0, 35, 8_000), (0, 1, 8_000))))
    assert found.slowdown == pytest.approx((1 + 36 / 10) / 2)


def test_a_submission_at_the_time_of_an_ending_comes_first(simulate: Simulate) -> None:
    replayed = simulate(tasks((0, 100, 8_000), (100, 5, 8_000)))
    assert (starts(replayed), replayed.runs[1].position) == ([0, 100], 1)


def test_the_naive_rule_is_position_times_mean_by_what_runs(simulate: Simulate) -> None:
    replayed = simulate(tasks((0, 100, 8_000), (10, 50, 8_000), (140, 40, 8_000), (145, 5, 8_000)))
    assert starts(replayed) == [0, 100, 150, 190]
    # One of 100 s had ended, one ran: 140 + 1 · 100 / 1 and 145 + 2 · 100 / 1.
    assert [run.naive_s for run in replayed.runs] == [None, None, 240, 345]
    found = figures(replayed).dates
    assert found.naive_median_error_s == (240 - 150 + 345 - 190) / 2
    assert found.scored >= 2


def test_what_can_never_fit_is_counted_and_nothing_more(simulate: Simulate) -> None:
    replayed = simulate(tasks((0, 10, 10_001), (1, 10, 10_000)))
    assert [run.never for run in replayed.runs] == [True, False]
    assert starts(replayed) == [None, 1]
    assert figures(replayed).never == 1


def test_several_gpus_are_taken_and_given_back_at_once(simulate: Simulate) -> None:
    pair = Requirements(6_000, 2, gpu_count=2)
    trace = [
        TraceTask(0, 100, Requirements(5_000)),
        TraceTask(1, 50, pair, "pair"),
        TraceTask(2, 20, Requirements(10_000)),
        TraceTask(200, 10, pair, "pair"),
    ]
    replayed = simulate(trace, node(gpus=2))
    # The pair needs 6,000 MB of both GPUs, which the first leaves at 100; the third is over by then.
    assert starts(replayed) == [0, 100, 2, 200]
    assert max(moment.gpu_used_mb for moment in replayed.moments) == 15_000
    assert replayed.moments[-1].gpu_used_mb == 0


def test_who_may_pass_is_a_matter_of_backfill(simulate: Simulate) -> None:
    """By what the past tells each takes 100 s: the long one would delay the whole one, and passes by greed alone."""
    past = [TraceTask(0, 100, Requirements(1_000), name) for name in ("half", "whole", "long") for _ in range(3)]
    future = [("half", 1000, 100, 6_000), ("whole", 1010, 100, 8_000), ("long", 1020, 900, 4_000)]
    trace = past + [TraceTask(at, length, Requirements(memory), name) for name, at, length, memory in future]
    begun = {
        backfill: starts(simulate(trace, options=replace(OPTIONS, backfill=backfill)))[-2:]
        for backfill in ("easy", "greedy", "none")
    }
    assert begun["greedy"] == [1920, 1020]
    assert begun["none"] == [1100, 1200]
    # It is expected to run for 100 s, until 1120.
    assert begun["easy"] == [1100, 1200]


def test_a_tenant_of_twice_the_weight_has_twice_the_turns(simulate: Simulate) -> None:
    """Six run at a time, and end together."""
    trace = [TraceTask(0, 100, Requirements(1_600)) for _ in range(6)]
    trace += [TraceTask(1, 100, Requirements(1_600, tenant=tenant)) for tenant in ("b", "a") for _ in range(18)]
    counts = {}
    for weight in (1, 2):
        replayed = simulate(trace, quotas={"a": Quota(weight)})
        early = [run.task.requirements.tenant for run in replayed.runs if 0 < (run.start_s or 0) < 400]
        counts[weight] = early.count("a"), early.count("b")
    assert counts == {1: (9, 9), 2: (12, 6)}


def test_tenants_are_told_apart(simulate: Simulate) -> None:
    trace = [
        TraceTask(at, length, Requirements(8_000, tenant=tenant))
        for at, length, tenant in ((0, 100, "a"), (0, 100, "b"), (0, 100, "a"), (0, 50, ""))
    ]
    found = figures(simulate(trace))
    assert list(found.tenants) == ["", "a", "b"]
    assert sum(of.tasks for of in found.tenants.values()) == 4
    assert found.tenants["a"].tasks == 2
    waits = [of.waits for of in found.tenants.values()]
    assert all(of is not None for of in waits)
    assert figures(simulate(tasks((0, 1, 1_000)))).tenants == {}


def test_strategies_differ_as_they_should(simulate: Simulate) -> None:
    """By best fit the third task takes what the second leaves, so that the fourth has room beside the first."""
    trace = tasks((0, 100, 4_000), (1, 200, 7_000), (2, 300, 3_000), (3, 10, 6_000))
    both = node("a"), node("b")
    assert starts(simulate(trace, *both, strategy=Strategy.FIRST_FIT)) == [0, 1, 2, 100]
    assert starts(simulate(trace, *both, strategy=Strategy.BEST_FIT)) == [0, 1, 2, 3]


def test_the_same_seed_is_the_same_simulation(simulate: Simulate) -> None:
    trace = tasks(*((float(i // 8), 10 + 7 * i % 31, 3_000 + 1_000 * (i % 5)) for i in range(40)))
    once, again, other = (simulate(trace, node(), node("n2", 2), seed=seed) for seed in (3, 3, 4))
    assert _told(once) == _told(again)
    assert _told(once) != _told(other)
    assert [run.task for run in simulate(trace).runs] == trace  # seed 0: as in the trace


def _told(replayed: Replayed) -> tuple[Any, ...]:
    return replayed.runs, replayed.moments, replayed.fragmentation, figures(replayed)


def test_speed_paces_the_clock(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class _Time:
        monotonic = staticmethod(lambda: clock[0])

        @staticmethod
        def sleep(seconds: float) -> None:
            clock[0] += seconds

    monkeypatch.setattr(replay, "time", _Time)
    simulate(tasks((0, 100, 8_000), (10, 50, 8_000)), speed=20)
    assert clock[0] == pytest.approx(150 / 20)


def test_progress_is_told_to_the_end(simulate: Simulate) -> None:
    told: list[tuple[int, int]] = []
    simulate(tasks((0, 10, 8_000), (1, 10, 20_000)), on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# --- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command in a folder with two tables."""
    (tmp_path / "trace.csv").write_text("submit_s,duration_s,gpu_memory_mb\n0,100,8000\n10,50,8000\n20,10,8000\n")
    (tmp_path / "nodes.csv").write_text("node,gpus,gpu_memory_mb,cpu_cores\nn1,1,10000,8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALLOCATOR_EMBEDDED_DIR", str(tmp_path / "the-users-own"))

    def run(*args: str) -> Any:
        result = CliRunner().invoke(allocator, ["simulate", *args], prog_name="celery-allocator")
        assert not (tmp_path / "the-users-own").exists()
        return result

    return run


def test_the_command_prints_the_figures(command: Callable[..., Any]) -> None:
    result = command("trace.csv", "--nodes", "nodes.csv")
    assert result.exit_code == 0, result.output
    assert "wait                     mean 1 min 13 s, p50 1 min 30 s, p95 2 min 10 s, max 2 min 10 s" in result.stdout
    assert "GPU memory in use        80.0 %" in result.stdout
    assert "simulating" in result.stderr


def test_the_command_draws_and_prints_json(command: Callable[..., Any], tmp_path: Path) -> None:
    first, second = (
        command("trace.csv", "--nodes", "nodes.csv", "--json", "--plot", name) for name in ("a.svg", "b.svg")
    )
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    assert (found["strategy"], found["backfill"]) == ("best_fit", "easy")
    assert (found["success"], found["waits"]["max_s"], found["makespan_s"]) == (True, 130, 160)
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert command("trace.csv", "--nodes", "nodes.csv", "--plot", "c.png").exit_code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none.csv", "--nodes", "nodes.csv"), "'none.csv' does not exist"),
        (("trace.csv",), "Missing option '--nodes'"),
        (("nodes.csv", "--nodes", "nodes.csv"), "nodes.csv, line 1: gpus='gpus': is no column of this table"),
        (("trace.csv", "--nodes", "nodes.csv", "--speed", "0"), "'0' is neither max nor a number above 0"),
        (("trace.csv", "--nodes", "nodes.csv", "--weight", "vision"), "'vision' is no tenant with its weight"),
        (("trace.csv", "--nodes", "nodes.csv", "--weight", "vision=-1"), "must be a number from 0.001 to 1000000"),
        (("trace.csv", "--nodes", "nodes.csv", "--plot", "plot.doc"), "'plot.doc' must end in .png or .svg"),
        (("trace.csv", "--nodes", "nodes.csv", "--strategy", "worst"), "'worst' is not one of"),
    ],
)
def test_the_command_says_what_is_wrong(command: Callable[..., Any], args: tuple[str, ...], said: str) -> None:
    result = command(*args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_what_is_asked_to_end_takes_its_server_with_it(command: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    args = ("simulate", "trace.csv", "--nodes", "nodes.csv", "--speed", "0.001")
    process = subprocess.Popen(
        [sys.executable, "-m", "celery_allocator", *args], env={**clean_environment(), "TMPDIR": str(folder)}
    )
    try:
        wait_until(lambda: list(folder.glob("*/server.pid")), message="its server runs")
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert list(folder.iterdir()) == []


def test_a_plot_that_cannot_be_written_is_said(command: Callable[..., Any]) -> None:
    result = command("trace.csv", "--nodes", "nodes.csv", "--plot", "nowhere/plot.png")
    assert result.exit_code == 1
    assert "'nowhere/plot.png' cannot be written: No such file or directory" in result.stderr
