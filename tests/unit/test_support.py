"""The tests' own tools can fail, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.availability import missing, no_device
from tests.support.processes import ROOT, OwnedProcess, clean_environment, free_port
from tests.support.redis_server import RedisServer, redis_binary
from tests.support.waiting import wait_until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def test_waiting_returns_the_value_and_fails_at_the_deadline() -> None:
    """With the message, and the last value seen."""
    values = iter([0, "", 7])
    assert wait_until(lambda: next(values), 5) == 7
    with pytest.raises(AssertionError, match=r"the moon.*last value 0"):
        wait_until(lambda: 0, 0.05, "the moon")
    with pytest.raises(AssertionError, match="asked late"):
        wait_until(lambda: None, 0.05, lambda: "asked late")


def test_a_missing_server_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CI is true nothing may hide behind a skip."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install it"):
        missing("a server", "install it")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install it"):
        missing("a server", "install it")


def test_a_missing_gpu_skips_in_ci_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command installs one."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.skip.Exception, match="no GPU here"):
        no_device("no GPU here")


def test_killing_takes_the_children_too(tmp_path: Path) -> None:
    """The whole group, also when the main process is gone already."""
    process = OwnedProcess([sys.executable, "-c", PARENT], tmp_path / "log")
    with process:
        process.wait_for_output("child")
        child = psutil.Process(int(process.output().split()[1]))
        process.kill_main()
        assert process.returncode == -signal.SIGKILL
        assert child.is_running()
        assert child.status() != psutil.STATUS_ZOMBIE
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5, "the child's end")


def test_after_a_kill_none_of_it_runs(tmp_path: Path) -> None:
    """Also a child in a session of its own, as PostgreSQL's: the next start may come at once."""
    process = OwnedProcess(
        [sys.executable, "-c", PARENT.replace('600)"]', '600)"], start_new_session=True')], tmp_path / "log"
    )
    with process:
        process.wait_for_output("child")
        child = psutil.Process(int(process.output().split()[1]))
        assert os.getsid(child.pid) == child.pid
        process.kill()
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ends_early_is_reported_with_its_output(tmp_path: Path) -> None:
    """At once, not at the deadline."""
    with (
        OwnedProcess([sys.executable, "-c", "print('sorry')"], tmp_path / "log") as process,
        pytest.raises(AssertionError, match=r"(?s)ended with 0.*sorry"),
    ):
        process.wait_for_output("ready", timeout=60)


def test_a_process_that_ignores_its_signal_is_an_error(tmp_path: Path) -> None:
    """And is killed."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with OwnedProcess([sys.executable, "-c", code], tmp_path / "log") as process:
        process.wait_for_output("up")
        with pytest.raises(AssertionError, match="did not end within"):
            process.stop(timeout=0.2)
        assert not process.alive


def test_processes_do_not_inherit_the_developers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the tests' own."""
    monkeypatch.setenv("ALLOCATOR_POOL", "mine")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://mine")
    env = clean_environment({"ALLOCATOR_NODE": "given"})
    assert {key: env[key] for key in env if key.startswith(("ALLOCATOR_", "CELERY_"))} == {"ALLOCATOR_NODE": "given"}


def test_the_chosen_leg_is_the_server_that_runs(monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> None:
    """``TEST_LEDGER`` steers the binary; a typo is an error, not the default."""
    with redis_server.client() as client:
        is_redis = "valkey_version" not in client.info("server")
    assert is_redis == (os.environ.get("TEST_LEDGER") == "redis")
    monkeypatch.setenv("TEST_LEDGER", "memory")
    with pytest.raises(ValueError, match="memory"):
        redis_binary()


def test_free_ports_are_free() -> None:
    """Different ones when asked in a row, and none that Linux gives to connections."""
    ports = {free_port() for _ in range(50)}
    assert len(ports) == 50
    assert max(ports) < 32_768


def test_a_port_that_was_given_is_given_to_no_other_process() -> None:
    """Although nobody listens there yet."""
    port = free_port()
    code = f"""
from tests.support import processes
class Choice:
    asked = iter([{port}] * 3)
    def choice(self, ports):
        return next(self.asked)
processes._CHOICE = Choice()
try:
    print(processes.free_port())
except StopIteration:
    print("none")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "none\n"
