"""The function form across processes: races, forks, the module as a command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from celery_allocator.ledger import Ledger
from tests.support import by_hand
from tests.support.processes import ROOT, clean_environment
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

RACER = """
import sys
from celery_allocator import allocate_resources

print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[1])):
    reply = allocate_resources(f"task_{n}", "processing", {"cpu_cores": 1, "ram_mb": 0})
    assert reply["success"], reply
    if reply["resources"]:
        print(*reply["resources"]["cpu_cores"], flush=True)
"""

FORKER = """
import json, os, sys
from celery_allocator import allocate_resources, release_resources

def allocate(name):
    return allocate_resources(name, "processing", {"cpu_cores": 1, "ram_mb": 0})

before = allocate("before")
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        replies = [allocate(f"child_{n}") for n in range(3)]
        os.write(write, json.dumps(replies).encode())
    finally:
        os._exit(0)
os.close(write)
mine = [allocate(f"parent_{n}") for n in range(3)]
with os.fdopen(read) as pipe:
    theirs = json.load(pipe)
os.waitpid(pid, 0)
print(json.dumps([before, *mine, *theirs]))
"""


def start(code: str, *args: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """A Python process with warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"PYTHONPATH": str(ROOT), **env}),
    )


def command(*args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``python -m celery_allocator.resource_allocator``."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "celery_allocator.resource_allocator", *args],
        capture_output=True,
        text=True,
        env=clean_environment({"PYTHONPATH": str(ROOT), **env}),
        timeout=60,
        check=False,
    )


@pytest.fixture
def env(redis_server: RedisServer, pool: str) -> dict[str, str]:
    return by_hand.environment(redis_server, pool)


@pytest.fixture
def ledger(redis_server: RedisServer, pool: str) -> Ledger:
    return by_hand.session(redis_server, pool).ledger


def test_two_processes_racing_for_eight_cores_get_each_once(env: dict[str, str], ledger: Ledger) -> None:
    racers = [start(RACER, "6", env=env) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()

    results = [racer.communicate(timeout=60) for racer in racers]

    assert [racer.returncode for racer in racers] == [0, 0], results
    cores = [int(line) for output, _ in results for line in output.split()]
    assert sorted(cores) == list(range(by_hand.CORES))
    assert len(ledger.queue()) == 12 - by_hand.CORES
    assert ledger.verify() == []


def test_a_forked_child_gets_a_connection_of_its_own(env: dict[str, str], ledger: Ledger) -> None:
    process = start(FORKER, env=env)
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    replies = json.loads(output)
    assert len(replies) == 7
    assert all(reply["success"] for reply in replies), replies
    assert sorted(core for reply in replies for core in reply["resources"]["cpu_cores"]) == list(range(7))
    assert ledger.verify() == []


def test_the_command_of_the_documentation(env: dict[str, str], ledger: Ledger) -> None:
    done = command("task_123", "--task-type=ml_inference", "--gpu-memory=2048", "--cpu-cores=2", env=env)

    assert (done.returncode, done.stderr) == (0, "")
    reply = json.loads(done.stdout)
    assert list(reply)[: len(by_hand.KEYS)] == by_hand.KEYS
    assert reply["resources"] == {"gpu_id": "gpu_0", "gpu_memory_mb": 2048, "cpu_cores": [0, 1], "ram_mb": 4096}
    (held,) = ledger.held()
    assert held.allocation_id == reply["allocation_id"]
    assert held.task_id == "task_123" and held.task_name == "ml_inference"


def test_every_option_of_the_command(redis_server: RedisServer, env: dict[str, str], ledger: Ledger) -> None:
    del env["ALLOCATOR_BACKEND_URL"]
    options = ["--gpu-memory=100", "--cpu-cores=3", "--ram=7", "--priority=5", "--strategy=first_fit", "--wait=1"]
    done = command("t", "--task-type=rendering", *options, "--ttl=77", f"--backend-url={redis_server.url}", env=env)

    assert done.returncode == 0, done.stderr
    (held,) = ledger.held()
    assert held.requirements.as_dict() == {"gpu_memory_mb": 100, "cpu_cores": 3, "ram_mb": 7, "priority": 5}
    assert held.strategy.value == "first_fit"
    assert held.expires_at is not None and held.granted_at is not None
    assert held.expires_at - held.granted_at == pytest.approx(77, abs=5)


def test_a_waiting_process_that_is_killed_is_soon_out_of_line(env: dict[str, str], ledger: Ledger) -> None:
    arguments = ("--task-type=processing", f"--cpu-cores={by_hand.CORES}")
    assert command("holder", *arguments, env=env).returncode == 0
    argv = [
        sys.executable,
        "-m",
        "celery_allocator.resource_allocator",
        "waiter",
        *arguments,
        "--wait=600",
        "--ttl=3600",
    ]
    waiter = subprocess.Popen(
        argv,
        stdout=subprocess.DEVNULL,
        env=clean_environment({"PYTHONPATH": str(ROOT), "ALLOCATOR_LEASE_S": "4", **env}),
    )
    try:
        (waiting,) = wait_until(ledger.queue, 30, "somebody in line")
        # It lives on while its process does: seen beyond its first life.
        wait_until(lambda: time.time() > waiting.submitted_at + 9, 30)
        ledger.tick()
        assert [a.allocation_id for a in ledger.queue()] == [waiting.allocation_id]
    finally:
        waiter.kill()
        waiter.wait(10)

    def gone() -> bool:
        ledger.tick()
        return not ledger.queue()

    wait_until(gone, 30, "the end of its place in line")


def test_what_must_wait_is_a_success_of_the_command(env: dict[str, str], ledger: Ledger) -> None:
    arguments = ("--task-type=processing", f"--cpu-cores={by_hand.CORES}")
    first, second = (command(name, *arguments, env=env) for name in ("a", "b"))

    assert (first.returncode, second.returncode) == (0, 0)
    reply = json.loads(second.stdout)
    assert reply["success"] is True and reply["resources"] is None and reply["queue_position"] == 1


@pytest.mark.parametrize(
    ("arguments", "changes", "code", "error"),
    [
        (["t", "--task-type=processing", "--cpu-cores=99"], {}, 1, "never_fits"),
        (["t", "--task-type=processing"], {"backend_url": "redis://127.0.0.1:1/0"}, 1, "ledger_unavailable"),
        (["t", "--task-type=processing", "--cpu-cores=-1"], {}, 2, "bad_requirements"),
        (["t", "--task-type=zzz"], {}, 2, "bad_requirements"),
        (["t", "--task-type=processing", "--ttl=nan"], {}, 2, "bad_requirements"),
        (["t", "--task-type=processing", "--strategy=worst"], {}, 2, "bad_requirements"),
        ([" ", "--task-type=processing"], {}, 2, "bad_requirements"),
        (["t", "--task-type=processing"], {"backend_url": "http://x"}, 2, "bad_setting"),
        (["t", "--task-type=processing"], {"backend_url": "redis://localhost:port/0"}, 2, "bad_setting"),
        (["t", "--task-type=processing"], {"pool": "a b"}, 2, "bad_setting"),
        (["t", "--task-type=processing"], {"ttl_s": "soon"}, 2, "bad_setting"),
        (["t", "--task-type=processing", "--cpu-cores=two"], {}, 2, None),
        (["t"], {}, 2, None),
        (["--task-type=processing"], {}, 2, None),
        (["t", "--task-type=processing", "--nonsense"], {}, 2, None),
    ],
)
def test_exit_codes(
    env: dict[str, str], arguments: list[str], changes: dict[str, Any], code: int, error: str | None
) -> None:
    changed = {f"ALLOCATOR_{name.upper()}": value for name, value in changes.items()}
    done = command(*arguments, env={**env, **changed})

    assert done.returncode == code, done.stderr
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    if error is None:
        assert done.stdout == ""
    else:
        reply = json.loads(done.stdout)
        assert reply["success"] is False
        assert reply["error"]["code"] == error
        assert reply["error"]["message"] in done.stderr


def test_with_nothing_configured_the_embedded_server_serves(tmp_path: Path) -> None:
    """The command starts it, a second one finds what the first allocated, and the console script stops it."""
    env = {"XDG_STATE_HOME": str(tmp_path), "ALLOCATOR_DEVICES": "sim:1x1000", "ALLOCATOR_CPU_CORES": "2"}
    arguments = ("--task-type=ml_inference", "--gpu-memory=1000", "--cpu-cores=1", "--ram=0")
    stop = [sys.executable, "-m", "celery_allocator", "server", "stop"]
    try:
        first, second = (command(name, *arguments, env=env) for name in ("a", "b"))
        assert json.loads(first.stdout)["resources"]["gpu_id"] == "gpu_0", first.stderr
        assert json.loads(second.stdout)["queue_position"] == 1, second.stderr
    finally:
        stopped = subprocess.run(
            stop, capture_output=True, text=True, env=clean_environment({"PYTHONPATH": str(ROOT), **env}), check=False
        )
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n"), stopped.stderr
