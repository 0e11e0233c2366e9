"""The gate's verdicts on runs of a real ledger: one that goes well, one that goes wrong; and the live rules."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_allocator.gate import Gate, Judgement, Rule, Sources, Verdict, check, evaluate, kinds
from celery_allocator.ledger import Options
from celery_allocator.model import State
from celery_allocator.settings import Settings
from tests.gate.book import HOUR, T0, Book, at
from tests.gate.recording import record
from tests.support.ledger_pool import LedgerPool
from tests.support.processes import ROOT


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    """A pool whose clock stands at the test's hour."""
    cluster = LedgerPool(ledger_client, pool, Options(max_losses=3))
    cluster.at = T0.timestamp()
    cluster.node(gpus=(10_000, 10_000), lease_s=7200)
    return cluster


def judged(cluster: LedgerPool, book: Book) -> Verdict:
    """The shipped gate's verdict on the hour."""
    book.pool = book.history.pool = cluster.ledger.pool
    record(cluster.ledger, book)
    book.value("losses")  # writes the rows
    return check(
        ROOT / "configs" / "gate.toml",
        since=T0,
        until=T0 + HOUR,
        settings=Settings(pool=cluster.ledger.pool),
        ledger=cluster.ledger,
        history=book.history,
    )


def run(cluster: LedgerPool, tasks: int, outcome: Callable[[int], dict[str, Any]]) -> None:
    """Submit all at once; each starts a second after its grant, takes ten seconds, and ends as told."""
    submitted = [cluster.submit(2_500, 1, task_name=f"proj.task{n % 2}").allocation.allocation_id for n in range(tasks)]
    ended = 0
    while ended < tasks:
        cluster.at += 1
        held = cluster.ledger.held()
        running = [cluster.start(a, repeatable=True) for a in held if a.state is State.GRANTED]
        cluster.at += 10
        for allocation in running:
            how = outcome(submitted.index(allocation.allocation_id))
            cluster.ledger.release(allocation.allocation_id, allocation.token, **how)
            ended += how["outcome"] != "lost" or cluster.ledger.find(allocation.task_id) == ()


def test_a_good_run_passes(cluster: LedgerPool, book: Book) -> None:
    for tasks in (20, 40):  # run times are known once the first have ended
        run(cluster, tasks, lambda _: {"outcome": "success"})
    verdict = judged(cluster, book)
    broken = [(r.name, r.value, r.reason) for r in verdict.results if r.judgement is not Judgement.PASSED]
    assert (broken, verdict.passed, verdict.exit_code) == ([], True, 0)
    values = {result.name: result.value for result in verdict.results}
    assert (values["success_rate"], values["oversubscription"], values["idle_gap"]) == (1.0, 0.0, 0.0)
    assert values["start_delay_p95"] == 1.0
    # Eight at a time (a GPU of 10,000 MB holds four, and has four slots), so the last of 40 begin with the fifth batch.
    assert values["wait_p95"] == 1 + 11 * 4
    assert values["estimate_coverage"] == 32 / (12 + 32)


def test_a_bad_run_fails_and_says_why(cluster: LedgerPool, book: Book) -> None:
    def outcome(number: int) -> dict[str, Any]:
        if number % 5 == 0:
            return {"outcome": "failure", "error": "OutOfMemoryError"}
        lost = number % 7 == 0 and number not in gone
        gone.add(number)
        return {"outcome": "lost" if lost else "success"}

    gone: set[int] = set()
    run(cluster, 60, outcome)
    verdict = judged(cluster, book)
    results = {result.name: result for result in verdict.results}
    assert (verdict.passed, verdict.exit_code) == (False, 1)
    assert {name for name, r in results.items() if r.judgement is Judgement.FAILED} == {
        "success_rate",
        "oom_rate",
        "regrant_rate",
    }
    assert results["losses"].judgement is Judgement.WARNED
    assert (results["success_rate"].value, results["oom_rate"].value) == (0.8, 0.2)
    assert results["oom_rate"].measurement.details == ("12 × OutOfMemoryError",)
    lost = sum(number % 7 == 0 and number % 5 > 0 for number in range(60))
    assert results["losses"].value == lost
    assert results["regrant_rate"].value == lost / (60 + lost)
    assert results["oversubscription"].value == 0.0


def live(cluster: LedgerPool, kind: str, **filters: str) -> float | None:
    """One live rule's value now."""
    rule = Rule(kind, kinds()[kind], maximum=0.0, filters={key: (glob,) for key, glob in filters.items()})
    sources = Sources(Settings(pool=cluster.ledger.pool), lambda: cluster.ledger)
    (result,) = evaluate(Gate("live", (rule,)), sources, since=T0, until=at(cluster.at - T0.timestamp() + 1)).results
    return result.value


def test_live_rules(cluster: LedgerPool) -> None:
    every = (
        "waiting_now",
        "oldest_waiting",
        "ledger_differences",
        "lost_workers",
        "offline_devices",
        "parked_messages",
    )
    assert [live(cluster, kind) for kind in every] == [0.0] * 6
    for _ in range(2):
        cluster.submit(10_000)
    for name in ("proj.a", "proj.a", "proj.b"):
        cluster.at += 60
        cluster.submit(10_000, task_name=name)
    cluster.at += 100
    assert (live(cluster, "waiting_now"), live(cluster, "waiting_now", task="*.a")) == (3.0, 2.0)
    assert (live(cluster, "oldest_waiting"), live(cluster, "oldest_waiting", task="*.b")) == (220.0, 100.0)

    cluster.ledger.park(cluster.ledger.queue()[0].allocation_id, "no JSON")
    assert (live(cluster, "parked_messages"), live(cluster, "parked_messages", task="*.b")) == (1.0, 0.0)

    cluster.ledger.client.hincrby(f"{{allocator:{cluster.ledger.pool}}}:node:n1", "rfree", -5)
    assert live(cluster, "ledger_differences") == 1.0


def test_lost_workers_and_offline_devices(cluster: LedgerPool) -> None:
    cluster.at += 7201  # the node's and the workers' leases: those of the latter were shorter
    assert live(cluster, "lost_workers") == 3.0, "their leases are over, and nobody has ticked"
    cluster.ledger.tick()
    assert (live(cluster, "lost_workers"), live(cluster, "lost_workers", device="*/gpu_*")) == (3.0, 2.0)
    assert (live(cluster, "offline_devices"), live(cluster, "offline_devices", device="*/gpu_0")) == (3.0, 1.0)
    cluster.node(gpus=(10_000, 10_000))
    assert (live(cluster, "lost_workers"), live(cluster, "offline_devices")) == (0.0, 0.0), "they came back"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("submit", "submit", "start", "end", "lose", "back", "drain", "ready"),
                *("hold", "unhold", "pause", "resume"),
            ]
        ),
        st.integers(0, 99),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_whatever_a_ledger_does_is_no_oversubscription_and_leaves_nothing_idle(
    actions: list[tuple[str, int]], ledger_client: redis.Redis
) -> None:
    """Any run: the recount of its events agrees with the ledger, which grants what fits in the step that frees it."""
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder).name
        cluster = LedgerPool(ledger_client, name)
        cluster.at = T0.timestamp() + 1
        cluster.node(gpus=(10_000, 4_000), cores=6, ram=4_000, slots=3)
        for action, number in actions:
            cluster.at += 1
            act(cluster, action, number)
        book = Book(f"sqlite:///{folder}/history.sqlite3", name)
        record(cluster.ledger, book)
        assert book.value("oversubscription")[0] == 0.0
        assert book.value("idle_gap")[0] == 0.0
        book.close()


def act(cluster: LedgerPool, action: str, number: int) -> None:
    """One thing that may happen."""
    ledger = cluster.ledger
    held = ledger.held()
    chosen = held[number % len(held)] if held else None
    if action == "submit":
        cluster.submit((0, 1_000, 4_000, 9_000)[number % 4], number % 3 or 1, (0, 1_000)[number % 2])
    elif action == "drain":
        ledger.cordon(("n1", "n1/gpu_0")[number % 2], drain=number % 3 == 0)
    elif action == "ready":
        ledger.uncordon(("n1", "n1/gpu_0")[number % 2])
    elif action in ("pause", "resume"):
        ledger.pause(stop=action == "pause")
    elif action == "hold" and (waiting := ledger.queue()):
        ledger.hold(waiting[number % len(waiting)].allocation_id)
    elif action == "unhold" and (on_hold := ledger.on_hold()):
        ledger.unhold(on_hold[number % len(on_hold)].allocation_id)
    elif chosen is None:
        return
    elif action == "start" and chosen.state is State.GRANTED:
        cluster.start(chosen, repeatable=bool(number % 2))
    elif action in ("end", "lose", "back"):
        outcome = {"end": "success", "lose": "lost", "back": "requeue"}[action]
        if action != "lose" or chosen.state is State.RUNNING:
            ledger.release(chosen.allocation_id, chosen.token, outcome)
