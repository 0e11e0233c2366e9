"""The command line on a real server, in this process and as ``celery -A proj allocator``."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_allocator import install
from celery_allocator.allocating import Session
from celery_allocator.ledger import keys
from celery_allocator.model import Requirements, State
from celery_allocator.surfaces.cli import allocator
from tests.support import by_hand
from tests.support.command_line import Run, allocate, submit_task
from tests.support.processes import ROOT, clean_environment
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


def test_an_allocation_from_the_first_to_the_last_command(run: Run, session: Session) -> None:
    reply = allocate(run)
    assert reply["resources"]["cpu_cores"] == [0]

    shown = run("show", "t")
    assert reply["allocation_id"] in shown and "host1/cpu" in shown and "1 core" in shown
    (data,) = run("show", reply["allocation_id"], "--json")
    assert (data["task_id"], data["state"], data["cores"], data["token"]) == ("t", "running", [0], reply["token"])
    renewed = run("renew", reply["allocation_id"], "--ttl", "7200", "--token", str(reply["token"]), "--json")
    assert renewed["expires_at"] > reply["expires_at"]
    assert "is not the live one" in run("release", reply["allocation_id"], "--token", "99999", code=1)
    assert run("release", reply["allocation_id"], "--json")["state"] == "released"
    assert "ended" in run("release", reply["allocation_id"], code=1)
    assert "it has ended or never was" in run("show", "t", code=1)
    assert run("show", "t", "--json", code=1)["error"]["code"] == "not_found"
    assert session.ledger.held() == ()


def test_status_tells_what_is_free_and_what_runs(run: Run) -> None:
    allocate(run, "a", "--gpu-memory=1000", "--cpu-cores=2")
    allocate(run, "b", f"--cpu-cores={by_hand.CORES}")

    data = run("status", "--json")
    assert (data["running"], data["waiting"], data["granted"], data["delayed"]) == (1, 1, 0, 0)
    (node,) = data["nodes"]
    assert node["cpu_cores_free"] == [2, 3, 4, 5, 6, 7]
    assert {d["device_id"]: d["memory_free_mb"] for d in node["devices"]} == {
        "gpu_0": by_hand.GPU_MB - 1000,
        "gpu_1": by_hand.GPU_MB,
        "cpu": 0,
    }
    lines = [line.split() for line in run("status").splitlines()]
    assert ["host1", "ready", "6", "8", str(by_hand.RAM_MB), str(by_hand.RAM_MB)] in lines
    assert ["host1/gpu_0", "ready", "23576", "24576", "-", "-", "1", "-", "-", "-", "Simulated", "GPU"] in lines


def test_why_says_what_lacks_and_who_holds_it(run: Run) -> None:
    allocate(run, "a", "--gpu-memory=20000", "--cpu-cores=2")
    allocate(run, "b", "--gpu-memory=20000", "--cpu-cores=3")
    allocate(run, "c", "--gpu-memory=8000", "--cpu-cores=4")
    (told,) = run("why", "c", "--json")
    assert (told["state"], told["position"], told["reason"]["code"]) == ("waiting", 1, "room")
    assert [place["device"] for place in told["places"]] == ["host1/gpu_0", "host1/gpu_1"]
    assert told["places"][0]["lacks"] == {
        "gpu_memory_mb": {"needed": 8000, "free": by_hand.GPU_MB - 20000},
        "cpu_cores": {"needed": 4, "free": 3},
    }
    lines = run("why", "c").splitlines()
    assert lines[1].startswith("It is number 1 in line since ")
    assert lines[2] == (
        "Lacks GPU memory (MB) on all of 2 (8000 needed, 4576 free at most), "
        "CPU cores on all of 2 (4 needed, 3 free at most)."
    )
    assert lines[5].split()[:10] == ["host1/gpu_0", "4576", "of", "8000", "MB", "GPU,", "3", "of", "4", "cores"]
    assert "It runs on host1/gpu_" in run("why", "a")
    assert "it has ended or never was" in run("why", "nobody", code=1)
    assert "more devices (--limit)" in run("why", "c", "--limit", "1")


def test_status_of_an_empty_pool_says_what_to_do(redis_server: RedisServer, pool: str) -> None:
    arguments = ["--backend-url", redis_server.url, "--pool", pool, "status"]

    result = CliRunner().invoke(allocator, arguments)

    assert result.exit_code == 0
    assert "No node is registered yet" in result.stdout and "worker --gpu 0" in result.stdout


def test_the_queue_is_listed_in_its_order(run: Run) -> None:
    assert run("queue") == "Nothing waits.\n"
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    allocate(run, "later", "--tenant=blue")
    allocate(run, "urgent", "--priority=5", "--cpu-cores=2", "--tenant=blue")

    rows = run("queue", "--json")
    assert [(row["position"], row["task_id"]) for row in rows] == [(1, "urgent"), (2, "later")]
    assert rows[0]["requirements"] == {
        "gpu_memory_mb": 0,
        "cpu_cores": 2,
        "ram_mb": 0,
        "priority": 5,
        "tenant": "blue",
    }
    assert 0 <= rows[0]["waits_s"] <= rows[1]["waits_s"]
    lines = run("queue").splitlines()
    assert lines[1].split()[:7] == ["1", "urgent", "processing", "2", "cores", "blue", "5"]
    assert len(run("queue", "--limit", "1", "--json")) == 1


def test_a_ttl_that_is_over_is_not_shown(run: Run) -> None:
    allocate(run, "t", "--ttl=0.05")

    wait_until(lambda: run("status", "--json")["running"] == 0, 30, "the end of the TTL")


def test_cancel_by_task_or_allocation(run: Run, session: Session) -> None:
    held = allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    allocate(run, "a")
    waiting = submit_task(session, "task")

    assert "was waiting and is cancelled" in run("cancel", "a")
    assert "a worker writes its result" in run("cancel", "task")
    assert run("cancel", held["allocation_id"], "--json") == {
        "success": True,
        "allocations": [{"allocation_id": held["allocation_id"], "was": "running", "cancelled": True, "entry": 5}],
    }
    assert session.ledger.held() == session.ledger.queue() == ()
    (obituary,) = session.ledger.tick().obituaries
    assert (obituary.allocation_id, obituary.outcome) == (waiting, "cancelled")
    assert "no live allocation" in run("cancel", "a", code=1)


def test_a_running_task_is_left_alone_by_cancel(run: Run, session: Session) -> None:
    ledger = session.ledger
    ledger.register_worker("w@host1", "i1", by_hand.NODE, "cpu", slots=1, queue="q", lease_s=60)
    name = submit_task(session, "task")
    ledger.start(name, ledger.get(name).token, "w@host1", "i1", "n1", repeatable=False)

    said = run("cancel", "task", code=1)

    assert "left alone" in said and "control terminate SIGTERM task" in said
    assert ledger.get(name).state is State.RUNNING


def test_cordon_uncordon_and_drain(run: Run, session: Session) -> None:
    run("cordon", "host1/gpu_0")
    assert allocate(run, "a", "--gpu-memory=100")["resources"]["gpu_id"] == "gpu_1"
    run("uncordon", "host1/gpu_0")
    held = allocate(run, "b", "--gpu-memory=100", "--strategy=first_fit")
    assert held["resources"]["gpu_id"] == "gpu_0"

    drained = run("drain", "host1/gpu_0", "--json")
    entry = drained.pop("entry")
    assert drained == {"success": True, "target": "host1/gpu_0", "state": "draining", "held": [held["allocation_id"]]}
    assert session.ledger.entry(entry).action == "drain"
    late = run("drain", "host1/gpu_0", "--wait", "--timeout", "0.3", code=1)
    assert "1 allocation still on host1/gpu_0 after 0.3 s" in late
    releaser = threading.Timer(0.3, session.ledger.release, (held["allocation_id"],))
    releaser.start()
    assert "host1/gpu_0 is empty" in run("drain", "host1/gpu_0", "--wait", "--timeout", "30")
    releaser.join()
    assert {d["device_id"]: d["state"] for d in run("status", "--json")["nodes"][0]["devices"]}["gpu_0"] == "draining"


@pytest.mark.parametrize("command", ["cordon", "uncordon", "drain"])
def test_an_unknown_target_is_told_what_there_is(run: Run, command: str) -> None:
    said = run(command, "host9", code=1)

    assert "host9" in said and "host1/gpu_0, host1/gpu_1, host1/cpu" in said
    assert run(command, "host9", "--json", code=1)["error"]["code"] == "unknown_target"


def test_what_an_uncordon_grants_is_published_by_the_next_tick(run: Run, session: Session) -> None:
    session.ledger.register_worker("w@host1", "i1", by_hand.NODE, "cpu", slots=1, queue="q", lease_s=60)
    run("cordon", "host1")
    name = submit_task(session, "task")
    assert session.ledger.get(name).state is State.WAITING

    run("uncordon", "host1")

    assert session.ledger.get(name).state is State.GRANTED
    assert [grant.allocation_id for grant in session.ledger.tick().grants] == [name]


def test_verify_tells_what_is_wrong(run: Run, session: Session) -> None:
    assert run("verify") == "The ledger is right.\n"
    assert run("verify", "--json") == {"success": True, "differences": []}
    ledger = session.ledger
    ledger.client.hincrby(f"{{allocator:{ledger.pool}}}:node:host1", "rfree", -5)

    assert "host1 free RAM" in run("verify", code=1)
    assert len(run("verify", "--json", code=1)["differences"]) == 1


def test_verify_repairs_when_it_is_told_to(run: Run, session: Session) -> None:
    key = f"{{allocator:{session.ledger.pool}}}:node:host1"
    session.ledger.client.hincrby(key, "rfree", -5)
    assert "Aborted" in run("verify", "--repair", code=1), "nobody said yes"
    assert run("verify", "--repair", "--yes") == "Repaired: 1 differences.\n"
    assert run("verify") == "The ledger is right.\n"
    session.ledger.client.hincrby(key, "cfree", 1)
    assert "add --yes" in run("verify", "--repair", "--json", code=2)
    reply = run("verify", "--repair", "--yes", "--json")
    assert (reply["success"], bool(reply["differences"]), reply["left"]) == (True, True, [])


def test_parked_messages_are_listed_and_decided_about(run: Run, session: Session) -> None:
    assert run("parked") == "Nothing is parked.\n"
    ledger = session.ledger
    for name in ("a1", "a2"):
        ledger.submit(name, f"task {name}", "proj.work", Requirements(cpu_cores=1), message=b"?")
        ledger.park(name, "no JSON")
    listed = run("parked")
    assert "proj.work" in listed
    assert "no JSON" in listed
    assert [p["allocation_id"] for p in run("parked", "--json")["parked"]] == ["a1", "a2"]
    assert run("parked", "discard", "a1") == "a1 is discarded\n"
    assert run("parked", "requeue", "a2", "--json")["now"] == "in line again"
    assert ledger.find("task a2")[0].state is State.WAITING
    assert "no message of 'a1' is parked" in run("parked", "discard", "a1", code=1)


def test_events_are_printed_once_each_and_in_order(run: Run, redis_server: RedisServer, pool: str) -> None:
    first = allocate(run)
    run("release", first["allocation_id"])

    lines = run("events").splitlines()
    mine = [line.split()[1] for line in lines if first["allocation_id"] in line]
    assert mine == ["granted", "operated", "released", "operated"]
    env = by_hand.environment(redis_server, pool)
    result = CliRunner().invoke(allocator, ["events", "--json", "--limit", "2"], env=env)
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["event"] for entry in entries] == [line.split()[1] for line in lines]
    result = CliRunner().invoke(allocator, ["events", "--json", "--since", entries[-2]["entry"]], env=env)
    assert [json.loads(line) for line in result.stdout.splitlines()] == entries[-1:]


def test_events_are_followed(redis_server: RedisServer, pool: str, run: Run) -> None:
    env = clean_environment({"PYTHONPATH": str(ROOT), **by_hand.environment(redis_server, pool)})
    argv = [sys.executable, "-W", "error", "-m", "celery_allocator", "events", "--follow", "--json"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "node"
        reply = allocate(run)
        assert json.loads(process.stdout.readline())["id"] == reply["allocation_id"]
        process.terminate()


def test_tick_ends_what_is_over(run: Run) -> None:
    assert run("tick", "--json") == {"success": True, "granted": [], "ended": [], "lost_workers": []}


def test_the_embedded_server_is_started_told_and_stopped(tmp_path: Path) -> None:
    env = {"ALLOCATOR_EMBEDDED_DIR": str(tmp_path / "server")}

    def server(*args: str) -> Any:
        return CliRunner().invoke(allocator, ["server", *args], env=env)

    assert server("status").exit_code == 1
    try:
        started = server("start")
        assert (started.exit_code, started.stderr) == (0, "")
        assert started.stdout.startswith("unix://")
        told = server("status", "--json")
        assert told.exit_code == 0
        assert json.loads(told.stdout)["url"] == started.stdout.strip()
    finally:
        stopped = server("stop")
    assert stopped.stdout == "stopped\n"
    assert server("stop").stdout == "it was not running\n"


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's result backend
def test_with_an_app_its_settings_count_and_results_are_written(
    run: Run, session: Session, redis_server: RedisServer, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("proj", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    install(app)
    app.conf.update(allocator_pool=pool, allocator_ttl_s=1234.0)
    obj = CLIContext(app=app, no_color=True, workdir=None)

    @app.task(name="proj.work", shared=False, resources={"cpu_cores": by_hand.CORES})
    def work() -> None:
        """Never runs."""

    allocate(run)
    result = work.delay()
    assert [a.task_id for a in session.ledger.queue()] == [result.id]

    rows = {row["name"]: row for row in run("settings", "--json", obj=obj)}
    assert (rows["allocator_ttl_s"]["value"], rows["allocator_ttl_s"]["from"]) == (1234.0, "app")
    assert run("cancel", result.id, obj=obj).rstrip().endswith("is cancelled")
    assert not caplog.records
    assert result.state == "REVOKED"
    assert session.ledger.tick().obituaries == ()
    app.close()


def test_the_commands_of_celery_itself(redis_server: RedisServer, pool: str, tmp_path: Path, session: Session) -> None:
    """As installed: the entry point makes ``celery -A proj allocator``."""
    info = tmp_path / "celery_allocator-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: celery-allocator-entry-point\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[celery.commands]\nallocator = celery_allocator.surfaces.cli:allocator\n")
    env = clean_environment(
        {
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "CELERY_BROKER_URL": redis_server.broker_socket_url,
            "ALLOCATOR_POOL": pool,
        }
    )
    argv = [sys.executable, "-m", "celery", "-A", "tests.support.proj", "allocator"]

    def celery(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*argv, *args], env=env, capture_output=True, text=True, timeout=60, check=False)

    status, unknown, settings = celery("status", "--json"), celery("cordon", "host9"), celery("settings", "--json")

    assert status.returncode == 0, status.stderr
    assert [node["node"] for node in json.loads(status.stdout)["nodes"]] == ["host1"]
    assert json.loads(status.stdout)["url"] == f"unix://{redis_server.socket}"
    assert unknown.returncode == 1
    assert "host9" in unknown.stderr and "Traceback" not in unknown.stderr
    assert {row["name"]: row["value"] for row in json.loads(settings.stdout)}["allocator_ttl_s"] == 1234.0


def test_a_paused_pool_says_so(run: Run) -> None:
    assert run("pause", "--reason", "maintenance") == "the pool is paused\n"
    assert "an operator has paused the pool" in run("status")
    assert allocate(run)["queue_position"] == 1
    assert len(run("resume", "--json")["granted"]) == 0  # one by hand is granted, and nothing is to be published
    assert run("show", "t", "--json")[0]["state"] == "running"


def test_the_journal_undo_and_redo(run: Run, session: Session) -> None:
    run("cordon", "host1", "--reason", "fan is loud", "--actor", "ada")
    run("drain", "host1/gpu_0")
    held = allocate(run, "t", "--strategy=first_fit")

    rows = run("journal", "--json")
    assert [(row["entry"], row["action"], row["state"]) for row in rows] == [
        (3, "allocate", "done"), (2, "drain", "done"), (1, "cordon", "done"),
    ]  # fmt: skip
    assert (rows[2]["actor"], rows[2]["reason"], rows[2]["source"]) == ("ada", "fan is loud", "cli")
    table = run("journal")
    assert "fan is loud" in table and "ENTRY" in table and held["allocation_id"] in table
    assert "before" in run("journal", "1")

    refused = run("undo", "1", code=1)
    assert "later actions depend on it. First undo: 2 drain host1/gpu_0" in refused
    plan = run("undo", "1", "--cascade", "--dry-run").splitlines()
    assert [line.split()[:3] for line in plan] == [["undo", "2", "drain"], ["undo", "1", "cordon"]]
    assert session.ledger.snapshot().nodes[0].state == "cordoned"
    assert "add --yes" in run("undo", "1", "--cascade", "--json", code=2)
    done = run("undo", "1", "--cascade", "--yes", "--json")["done"]
    assert [row["entry"] for row in done] == [2, 1]
    assert session.ledger.snapshot().nodes[0].state == "ready"

    assert run("undo").startswith("undone 3: ")  # the latest that is in force
    assert "there is nothing to undo" in run("undo", code=1)
    assert "no live allocation" in run("show", "t", code=1)
    assert run("redo").startswith("redone 3: ")
    assert "First redo: 1 cordon host1" in run("redo", "2", code=1)
    assert run("redo", "2", "--cascade", "--yes").splitlines()[-1].startswith("redone 2: ")
    assert {d.state for d in session.ledger.snapshot().devices} == {"cordoned", "draining"}
    assert "cannot redo 2 drain host1/gpu_0" in run("redo", "2", code=1)
    assert "not in the journal" in run("undo", "99", code=1)


def test_an_undone_cancel_is_back_in_line(run: Run, session: Session) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    name = submit_task(session, "task")
    run("cancel", "task")
    assert run("undo") == f"undone 2: {name} is waiting again\n"
    assert session.ledger.get(name).queue_position == 1


def test_a_breaker_by_hand(run: Run, session: Session) -> None:
    assert run("breaker") == "Every breaker is closed.\n"
    run("breaker", "open", "proj.work", "--reason", "bad release")
    session.ledger.register_worker("w@host1", "i1", by_hand.NODE, "cpu", slots=1, queue="q", lease_s=60)
    assert session.ledger.get(submit_task(session, "task")).on_hold_by == "breaker"
    (row,) = run("breaker", "--json")
    assert (row["name"], row["state"], row["by"]) == ("proj.work", "open", "operator")
    assert "stays on hold: the circuit breaker" in run("unhold", "task")
    assert "was on hold and is cancelled" in run("cancel", "task")
    assert run("undo").endswith("is on hold again\n")
    assert "proj.work" in run("breaker")
    assert run("breaker", "close", "proj.work").startswith("the breaker of proj.work is closed")
    assert run("undo").startswith("undone 4: the breaker of proj.work is open")
    (row,) = run("breaker", "--json")
    assert (row["state"], row["since"] is not None) == ("open", True)
    run("redo", "4")
    run("breaker", "close", "proj.other")
    assert run("breaker", "--json") == [], "only what is not granted freely"


def test_a_cancel_by_hand_is_undone_though_its_host_was_let_go(run: Run, session: Session) -> None:
    """With the last allocation on it the host's lease ends; the undo offers it again."""
    held = allocate(run)
    run("cancel", "t")
    run("tick")
    assert session.ledger.snapshot().nodes[0].state == "offline"
    assert run("undo").endswith(f"{held['allocation_id']} is running again\n")
    run("tick")
    assert session.ledger.snapshot().nodes[0].state == "ready"
    assert run("show", "t", "--json")[0]["state"] == "running"


def test_a_cascade_that_is_declined_does_nothing(run: Run, session: Session) -> None:
    run("cordon", "host1")
    run("drain", "host1/gpu_0")
    told = run("undo", "1", "--cascade", code=1)
    assert "undo 2 drain host1/gpu_0" in told and "Aborted" in told
    assert [entry.state for entry in session.ledger.journal()] == ["done", "done"]


def test_a_damaged_entry_is_told_and_the_others_are_listed(run: Run, session: Session) -> None:
    for reason in ("one", "two", "three"):
        run("pause", "--reason", reason)
    session.ledger.client.hset(keys.key(session.ledger.pool, "entry", "2"), "before", "nonsense")
    assert [row["entry"] for row in run("journal", "--json")] == [3, 1]
    assert "journal entry 2" in run("journal", "2", code=1)
    assert "repair" in run("undo", code=1)
    assert "entry 2 of the journal is damaged" in run("verify", code=1)
    run("verify", "--repair", "--yes")
    assert run("undo").startswith("undone 3: ")


def test_a_reason_that_cannot_be_recorded_is_a_wrong_call(run: Run, session: Session) -> None:
    for reason in ("x" * 256, "two\nlines"):
        assert "must be 1 to 255 printable characters" in run("pause", "--reason", reason, code=2)
    assert session.ledger.journal() == ()
