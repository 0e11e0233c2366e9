"""What operators do to real tasks by the commands, and how it is undone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_allocator.model import State
from tests.support.cluster import MODULE, SOON_S, Cluster
from tests.support.processes import ROOT

#: One at a time.
ALL_OF_IT = {"gpu_memory_mb": 8192, "cpu_cores": 8}


def command(cluster: Cluster, *args: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", MODULE, "allocator", *args]


def allocator(cluster: Cluster, *args: str, code: int = 0) -> Any:
    """``celery -A proj allocator …``: its JSON, or its text."""
    done = subprocess.run(
        command(cluster, *args), env=cluster.environment(), cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if "--json" in args else done.stdout + done.stderr


def test_a_cancelled_task_is_undone_and_runs(cluster: Cluster) -> None:
    """REVOKED for whoever looks, then pending again, then its result. Who has been told keeps what he was told."""
    other = cluster.make_app()
    with cluster.full():
        result = cluster.app.send_task("zoo.add", (1, 2))
        name = cluster.only(result.id).allocation_id
        told = allocator(cluster, "cancel", result.id, "--json", "--actor", "ada", "--reason", "by mistake")
        assert told["allocations"] == [
            {"allocation_id": name, "was": "waiting", "cancelled": True, "entry": told["allocations"][0]["entry"]}
        ]
        assert other.AsyncResult(result.id).state == "REVOKED"
        assert cluster.ledger.find(result.id) == ()
        entry = cluster.ledger.entry(told["allocations"][0]["entry"])
        assert (entry.actor, entry.reason, entry.source, entry.action) == ("ada", "by mistake", "cli", "cancel")

        assert "is waiting again" in allocator(cluster, "undo", str(entry.number), "--reason", "it was needed")
        assert other.AsyncResult(result.id).state == "PENDING"
        assert cluster.only(result.id).state is State.WAITING
        assert cluster.ledger.entry(entry.number).undone_reason == "it was needed"
    assert other.AsyncResult(result.id).get(timeout=SOON_S) == 3
    assert "cannot undo" in allocator(cluster, "undo", str(entry.number), code=1)


def test_a_redone_cancel_is_revoked_again(cluster: Cluster) -> None:
    with cluster.full():
        result = cluster.app.send_task("zoo.add", (1, 2))
        (row,) = allocator(cluster, "cancel", result.id, "--json")["allocations"]
        allocator(cluster, "undo", str(row["entry"]))
        allocator(cluster, "redo", str(row["entry"]))
        assert cluster.ledger.find(result.id) == ()
        with pytest.raises(TaskRevokedError):
            result.get(timeout=SOON_S)


def test_hold_and_priority_change_the_order_in_which_tasks_run(cluster: Cluster) -> None:
    names = cluster.key()
    with cluster.full():
        sent = {
            name: cluster.app.send_task("zoo.note", (names, name), resources=ALL_OF_IT)
            for name in ("first", "second", "third", "fourth")
        }
        allocator(cluster, "hold", sent["first"].id)
        allocator(cluster, "priority", sent["fourth"].id, "7")
        allocator(cluster, "priority", sent["third"].id, "--", "-7")
        assert [a.task_id for a in cluster.ledger.queue()] == [sent[n].id for n in ("fourth", "second", "third")]
    for name in ("fourth", "second", "third"):
        sent[name].get(timeout=SOON_S)
    assert cluster.only(sent["first"].id).state is State.ON_HOLD
    assert cluster.notes(names) == ["fourth", "second", "third"]
    allocator(cluster, "unhold", sent["first"].id)
    assert sent["first"].get(timeout=SOON_S) == "first"
    assert cluster.notes(names) == ["fourth", "second", "third", "first"]


def test_a_paused_pool_starts_nothing_and_what_runs_goes_on(cluster: Cluster) -> None:
    key = cluster.key()
    running = cluster.app.send_task("zoo.hold", (key,))
    cluster.held_in(key)
    entry = allocator(cluster, "pause", "--json", "--reason", "maintenance")["entry"]
    waiting = cluster.app.send_task("zoo.add", (1, 2))
    assert cluster.only(waiting.id).state is State.WAITING
    cluster.let_go(key)
    assert running.get(timeout=SOON_S) == key
    assert cluster.only(waiting.id).state is State.WAITING
    assert allocator(cluster, "undo", str(entry), "--json")["done"] == [
        {"entry": entry, "text": "the pool is granting"}
    ]
    assert waiting.get(timeout=SOON_S) == 3


def test_two_processes_undo_the_same_and_one_of_them_does(cluster: Cluster) -> None:
    with cluster.full():
        result = cluster.app.send_task("zoo.add", (1, 2))
        (row,) = allocator(cluster, "cancel", result.id, "--json")["allocations"]
        replies: list[subprocess.CompletedProcess[str]] = []

        def undo() -> None:
            done = subprocess.run(
                command(cluster, "undo", str(row["entry"])), env=cluster.environment(), cwd=ROOT, capture_output=True,
                text=True, timeout=60, check=False,
            )  # fmt: skip
            replies.append(done)

        threads = [threading.Thread(target=undo) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done.returncode for done in replies) == [0, 1]
        (late,) = [done for done in replies if done.returncode]
        assert "is undone already" in late.stderr and "Traceback" not in late.stderr
        assert len(cluster.ledger.queue()) == 1
    assert cluster.make_app().AsyncResult(result.id).get(timeout=SOON_S) == 3
