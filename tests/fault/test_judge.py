"""The judge is given histories that are wrong, and sees each wrong once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_allocator.ledger import Ledger
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements
from tests.fault import judge, report
from tests.fault.crew import Outcome
from tests.fault.history import History, Run
from tests.fault.judge import Sent, Verdict
from tests.fault.registry import FAILS, SILENT, SUCCEEDS, load
from tests.support.records import Capacity
from tests.support.waiting import wait_until

THERE = {"n": Capacity(frozenset(range(4)), 1000, {"gpu_0": 100, "gpu_1": 100}, {"gpu_0": 2, "gpu_1": 2})}


def run(n: int, start: float, end: float | None, **changes: Any) -> Run:
    """A run of task ``n`` on core ``n`` and, of 100, 40 MB of GPU 0."""
    values = {
        "allocation_id": f"a{n}", "token": n + 1, "node": "n", "device": "gpu_0", "gpu_memory_mb": 40, "ram_mb": 100,
        "cores": (n,), **changes,
    }  # fmt: skip
    return Run(f"r{n}{start}", f"t{n}", "task", 1, start, end, **values)


def task(n: int, state: str = "SUCCESS", ends: frozenset[str] = SUCCEEDS, **changes: Any) -> Sent:
    return Sent(f"t{n}", "task", ends, state=state, **changes)


def test_a_good_history() -> None:
    """Two runs side by side, a third on the core, memory and slot of the first once that has ended."""
    runs = [run(0, 0, 1), run(1, 0, 2), run(2, 1, 2, cores=(0,))]
    sent = [task(0), task(1), task(2)]
    assert judge.lost(sent, runs) == judge.doubled(runs) == judge.overlaps(runs, THERE, 9) == []


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (task(7, "PENDING"), "is PENDING"),
        (task(7, "STARTED"), "is STARTED"),
        (task(0, "FAILURE"), "is FAILURE"),
        (task(0, "SUCCESS", FAILS), "should be FAILURE"),
        (task(7, "PENDING", SILENT), "neither started nor ended"),
        (task(7), "has a result, but never ran"),
        (task(0, "PENDING", accepted=False), "was refused to its caller"),
    ],
)
def test_a_lost_task(sent: Sent, says: str) -> None:
    """No visible end, or not the one it should have."""
    (found,) = judge.lost([sent], [run(0, 0, 1)])
    assert says in found


def test_a_claim_whose_answer_was_lost() -> None:
    """A task that may not be repeated has failed without a run: no loss where answers may be lost, and only there."""
    reason = "WorkerLostError('... may not be repeated: acks_late is not set, or allocator_max_losses is 0')"
    never, begun = task(7, "FAILURE", reason=reason), task(0, "FAILURE", reason=reason)
    assert judge.lost([never], [run(0, 0, 1)], unheard=True) == []
    assert len(judge.lost([never], [run(0, 0, 1)])) == 1
    assert len(judge.lost([begun], [run(0, 0, 1)], unheard=True)) == 1
    assert len(judge.lost([task(7, "FAILURE", reason="ValueError()")], [], unheard=True)) == 1


def test_what_was_refused_or_promises_no_result_is_not_lost() -> None:
    """Its caller was told, or it ran."""
    assert judge.lost([task(7, "PENDING", accepted=False), task(0, "PENDING", SILENT)], [run(0, 0, 1)]) == []


def test_a_doubled_task() -> None:
    """The same token twice, also one after the other; another token is another grant."""
    assert len(judge.doubled([run(0, 0, 1), run(0, 2, 3)])) == 1
    assert judge.doubled([run(0, 0, 1), run(0, 2, 3, token=9)]) == []


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (run(1, 0.5, 2, cores=(0,)), "core 0 is held by a0 and a1"),
        (run(1, 0.5, 2, gpu_memory_mb=61), "memory of gpu_0: 101 held, 100 there"),
        (run(1, 0.5, 2, ram_mb=901, device="gpu_1"), "RAM: 1001 held, 1000 there"),
        (run(1, 0.5, None, gpu_memory_mb=61), "memory of gpu_0"),
        (run(1, 0.5, 2, token=0), "ran without an allocation"),
    ],
)
def test_an_overlap(other: Run, says: str) -> None:
    """More held at one instant than there is."""
    (found,) = judge.overlaps([run(0, 0, 1), other], THERE, 9)
    assert says in found


def test_too_many_in_the_slots() -> None:
    """Small enough for the memory, but two slots are two."""
    runs = [run(n, 0, 1, gpu_memory_mb=1) for n in range(3)]
    assert any("slots of gpu_0: 3 held, 2 there" in text for text in judge.overlaps(runs, THERE, 9))


def test_a_lapsed_run_holds_nothing_by_right() -> None:
    """What others do with it after its lease is not an overlap."""
    stale = run(0, 0, 5)
    stale.lapsed = 1.0
    assert judge.overlaps([stale, run(1, 2, 3, cores=(0,))], THERE, 9) == []
    assert judge.overlaps([stale, run(1, 0.5, 3, cores=(0,))], THERE, 9)


def test_a_leak(ledger_client: redis.Redis, pool: str) -> None:
    """A held slot, a waiting task, and books that do not add up."""
    ledger = Ledger(ledger_client, pool)
    gpu = DeviceInventory("gpu_0", 0, "GPU-1", "A GPU", 1000)
    ledger.register_node(NodeInventory("n", (0, 1), 1000, (gpu,)), lease_s=600)
    ledger.register_worker("w", "life", "n", "gpu_0", slots=1, queue="q", lease_s=600)
    assert judge.leaked(ledger) == []
    need = Requirements(gpu_memory_mb=600, cpu_cores=1)
    held = ledger.submit("a", "t1", "task", need).allocation
    ledger.submit("b", "t2", "task", need)
    found = " ".join(judge.leaked(ledger))
    for text in ("still granted on gpu_0", "still waiting", "has 400 MB and 0 slots free", "n has cores"):
        assert text in found
    assert "verify" not in found
    ledger.cancel("b")
    ledger.settle(["b"])
    ledger.release("a", held.token)
    assert judge.leaked(ledger) == []
    ledger_client.zadd(f"{{allocator:{pool}}}:held", {"ghost": 1})
    assert "verify: ghost" in " ".join(judge.leaked(ledger))


def test_a_claim_that_runs_under_two_tokens_at_once() -> None:
    """Also where both find room; not one after the other, and not what had lapsed."""
    first = run(0, 0, 5)
    again = {"token": 9, "cores": (3,), "device": "gpu_1"}
    (found,) = judge.overlaps([first, run(0, 3, 6, **again)], THERE, 9)
    assert "under token 1 for 2.00 s beside token 9" in found
    assert judge.overlaps([first, run(0, 5, 6, **again)], THERE, 9) == []
    first.lapsed = 2.5
    assert judge.overlaps([first, run(0, 3, 6, **again)], THERE, 9) == []


def test_recovery_counts_from_the_strike() -> None:
    """For the runs of victims that it struck; others, and what ran afterwards, are not what was struck."""
    sent = [task(0, victim=True, struck=2.0), task(1, victim=True), task(2)]
    runs = [run(0, 0, 5), run(1, 0, 5), run(2, 0, 5), run(0, 7, 8, token=4)]
    assert judge.recoveries(sent, runs, {("a0", 1): 6.0, ("a1", 2): 5.5, ("a2", 3): 9.0, ("a0", 4): 8.5}) == [4.0]


def test_recovery_counts_from_the_end_where_nothing_was_struck() -> None:
    """And only for victims whose slot was seen to come back."""
    sent = [task(0, victim=True), task(1, victim=True), task(2)]
    runs = [run(n, 0, 5) for n in range(3)]
    assert judge.recoveries(sent, runs, {("a1", 2): 5.5, ("a2", 3): 9.0}) == [0.5]


def test_a_run_ends_when_its_process_is_gone(tmp_path: Path) -> None:
    """The end a task wrote counts; without one, the end of its process."""
    path = tmp_path / "records.jsonl"
    history = History(path)
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with path.open("a") as file:
            file.write(f'{{"run": "x", "task_id": "t", "task": "n", "pid": {sleeper.pid}, "start": 1.0}}\n')
            file.write(f'{{"run": "y", "task_id": "u", "task": "n", "pid": {os.getpid()}, "start": 1.0}}\n')
            file.write('{"run": "y", "end": 2.0}\n{"run": "cut')
        assert history.running("t")
        assert [(r.end, r.killed) for r in history.runs("u")] == [(2.0, False)]
        sleeper.kill()
        wait_until(lambda: not history.running("t"), 30, "the end to be seen")
        assert history.runs("t")[0].killed
    finally:
        sleeper.kill()
        sleeper.wait()
        history.close()


def test_the_report_adds_up() -> None:
    """Each kind of trouble has its number; what came back late is bad, too."""
    worse = Outcome("b", 2, verdict=Verdict(["l"], ["d", "d"], ["o"], ["k"], [1.0, 3.0], 7))
    late = Outcome("c", 1, within_s=2.0, verdict=Verdict(recoveries=[2.5]))
    outcomes = [Outcome("a", 3), worse, late, Outcome("d", skipped="no such server")]
    assert report.total(outcomes) == {
        "faults": 3, "rounds": 6, "lost": 1, "doubled": 2, "overlaps": 1, "leaked": 1, "worst_recovery_s": 3.0,
        "late": {"c": 2.5}, "skipped": {"d": "no such server"},
    }  # fmt: skip
    assert [outcome.bad for outcome in outcomes] == [False, True, True, False]
    assert report.row(worse) == ["b", "2", "7", "1", "2", "1", "1", "2.00 s", "3.00 s"]
    assert report.markdown(outcomes).count("\n") == 6


def test_faults_are_chosen_by_name_and_group() -> None:
    """Part of a name, a pattern, a group; equal sites are shared."""
    faults = load()
    assert [f.name for f in report.chosen(faults, ("os._exit",), ())] == ["child: os._exit"]
    assert {f.group for f in report.chosen(faults, ("child:*",), ("child",))} == {"child"}
    assert report.chosen(faults, ("child:*",), ("worker",)) == []
    crews = report.crews(list(faults.values()))
    assert sorted(name for crew in crews for name in crew) == sorted(faults)
    for crew in crews:
        assert len({(faults[name].site, faults[name].layout) for name in crew}) == 1
