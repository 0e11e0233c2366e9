"""The node launcher, on fake workers: small Python programs in the place of Celery's."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from celery_allocator.errors import SettingsError
from celery_allocator.launcher import Policy, Supervisor, WorkerCommand, plan
from celery_allocator.launcher.__main__ import main
from celery_allocator.launcher.launch import app_name, run_workers, split_extra
from celery_allocator.launcher.output import LONGEST_LINE, Console, LineSplitter
from celery_allocator.model import DeviceInventory, NodeInventory
from celery_allocator.settings import Settings

DEADLINE_S = 20.0
FAST = Policy(first_delay_s=0.05, longest_delay_s=0.2, fast_failures=3, kill_after_s=0.5, poll_s=0.02)
NODE = NodeInventory(
    node="host1",
    cpu_cores=(0, 1, 2),
    ram_mb=4096,
    devices=(
        DeviceInventory("gpu_0", 0, "GPU-a", "model", 8192),
        DeviceInventory("gpu_1", 1, "GPU-b", "model", 8192),
    ),
)


def worker(name: str, code: str) -> WorkerCommand:
    return WorkerCommand(name, (sys.executable, "-u", "-c", code))


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds; fail at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE_S} s: {what}")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Running:
    """A supervisor running in a thread, and what it wrote."""

    def __init__(self, *commands: WorkerCommand, policy: Policy = FAST) -> None:
        self.stream = io.BytesIO()
        self.supervisor = Supervisor(commands, Console(self.stream, [c.name for c in commands]), policy)
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()

    @property
    def text(self) -> str:
        return self.stream.getvalue().decode(errors="replace")

    def saw(self, text: str) -> None:
        until(lambda: text in self.text, f"{text!r} in {self.text!r}")

    def end(self) -> int:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), f"the supervisor did not end; it wrote {self.text!r}"
        assert self.code is not None
        return self.code


# --- what to start


def test_one_worker_per_device_and_one_for_cpu_work() -> None:
    commands = plan("proj", NODE, Settings(devices="0,1"), extra=("--loglevel", "INFO"))
    assert [command.name for command in commands] == ["gpu0", "gpu1", "cpu"]
    gpu1 = commands[1].argv
    assert gpu1[:6] == (sys.executable, "-m", "celery", "-A", "proj", "worker")
    assert gpu1[6:] == ("--gpu", "GPU-b", "-n", "gpu1@host1", "-c", "2", "--pool", "prefork", "--loglevel", "INFO")
    cpu = commands[2].argv
    assert cpu[cpu.index("--gpu") + 1] == "none"
    assert cpu[cpu.index("-c") + 1] == "3", "as many slots as cores"
    assert commands[0].environ["ALLOCATOR_DEVICES"] == "0,1"
    assert commands[0].environ["ALLOCATOR_NODE"] == "host1"


def test_slots_and_pool_are_settings() -> None:
    settings = Settings(worker_concurrency=5, worker_cpu_concurrency=7, worker_pool="threads")
    commands = plan("proj", NODE, settings)
    assert [command.argv[command.argv.index("-c") + 1] for command in commands] == ["5", "5", "7"]
    assert {command.argv[command.argv.index("--pool") + 1] for command in commands} == {"threads"}


def test_cpu_worker_can_be_left_out() -> None:
    assert [command.name for command in plan("proj", NODE, Settings(), cpu_worker=False)] == ["gpu0", "gpu1"]


@pytest.mark.parametrize(
    "argv",
    [["-A", "proj.app", "allocator", "workers"], ["--app", "proj.app"], ["--app=proj.app"], ["-q", "-Aproj.app"]],
)
def test_app_name_comes_from_the_celery_command_line(argv: list[str]) -> None:
    assert app_name(object(), argv) == "proj.app"


def test_app_name_comes_from_the_environment_then_from_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP", "from.env")
    assert app_name(object(), []) == "from.env"
    monkeypatch.delenv("APP")
    assert app_name(FAST, []).endswith(":FAST")
    with pytest.raises(SettingsError):
        app_name(object(), [])


# --- output


def test_lines_are_cut_whatever_the_pieces() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == [b"one"]
    assert splitter.feed(b"o\r\n\nthr") == [b"two", b""]
    assert splitter.flush() == [b"thr"]
    assert splitter.flush() == []
    assert splitter.feed(b"x" * (LONGEST_LINE + 1)) == [b"x" * (LONGEST_LINE + 1)]


def test_console_pads_and_colours_names() -> None:
    plain, coloured = io.BytesIO(), io.BytesIO()
    Console(plain, ["gpu0", "cpu"]).line("cpu", b"hello")
    assert plain.getvalue().decode() == "cpu  │ hello\n"
    Console(coloured, ["gpu0"], colour=True).line("gpu0", b"\xff raw")
    assert coloured.getvalue() == "\x1b[36mgpu0 │ \x1b[0m".encode() + b"\xff raw\n"


def test_every_line_carries_its_worker_also_the_last_unfinished_one() -> None:
    running = Running(
        worker("gpu0", "print('a'); print('b', end='')"),
        worker("cpu", "import sys; print('c', file=sys.stderr)"),
    )
    assert running.end() == 0
    lines = running.text.splitlines()
    assert {"gpu0 │ a", "gpu0 │ b", "cpu  │ c"} <= set(lines)
    assert all(line.startswith(("gpu0 │ ", "cpu  │ ")) for line in lines)


def test_a_closed_output_stops_the_workers() -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    running = Running.__new__(Running)
    running.stream = Closed()
    command = worker("w", "import time; print('x'); time.sleep(600)")
    running.supervisor = Supervisor([command], Console(running.stream, ["w"]), FAST)
    running.code = None
    running.thread = threading.Thread(target=running._run, daemon=True)
    running.thread.start()
    assert running.end() == 0


# --- restarts


def test_a_crashing_worker_is_started_again_with_growing_delays_and_given_up() -> None:
    running = Running(worker("w", "print('up'); raise SystemExit(3)"))
    assert running.end() == 1
    assert running.text.count("up\n") == 3
    assert "starting again in 0.05 s" in running.text
    assert "starting again in 0.1 s" in running.text
    assert "exit code 3" in running.text
    assert "given up after 3 failures in a row" in running.text


def test_delays_double_up_to_the_longest() -> None:
    policy = Policy(first_delay_s=1, longest_delay_s=30)
    assert [policy.delay_s(n) for n in (1, 2, 3, 4, 5, 6, 50)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_healthy_run_starts_the_count_over(tmp_path: Path) -> None:
    # Ten ends in a row are more than the three allowed, but each came after a healthy time.
    count = tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x'); import time; time.sleep(0.02); raise SystemExit(1)"
    policy = Policy(first_delay_s=0.01, healthy_s=0.01, fast_failures=3, poll_s=0.01)
    running = Running(worker("w", code), policy=policy)
    until(lambda: count.exists() and len(count.read_text()) >= 6, "six starts")
    assert "given up" not in running.text
    assert "starting again in 0.02 s" not in running.text
    running.supervisor.request_stop()
    assert running.end() == 0


def test_a_worker_that_exits_by_request_is_not_started_again() -> None:
    running = Running(worker("w", "print('once')"))
    assert running.end() == 0
    assert running.text.count("once") == 1


def test_one_worker_given_up_leaves_the_others_running() -> None:
    running = Running(worker("bad", "raise SystemExit(1)"), worker("good", "print('up'); import time; time.sleep(600)"))
    running.saw("given up")
    assert set(running.supervisor.pids()) == {"good"}
    running.supervisor.request_stop()
    assert running.end() == 1


def test_a_command_that_cannot_start_counts_as_a_failure() -> None:
    running = Running(WorkerCommand("w", ("/nonexistent/celery",)))
    assert running.end() == 1
    assert "cannot start" in running.text


def test_environment_is_laid_over_the_launchers_own() -> None:
    code = "import os; print(os.environ['ALLOCATOR_NODE'], 'PATH' in os.environ)"
    running = Running(WorkerCommand("w", (sys.executable, "-c", code), {"ALLOCATOR_NODE": "host9"}))
    assert running.end() == 0
    assert "host9 True" in running.text


# --- stopping

GRACEFUL = """
import signal, sys, time
def stop(number, frame):
    print("got", signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up")
time.sleep(600)
"""
STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
    signal.signal(number, lambda n, f: print("ignored", signal.Signals(n).name))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, "end")
while True:
    time.sleep(0.05)
"""


def child_pid(running: Running) -> int:
    running.saw("end\n")
    return int(running.text.split("child ")[1].split()[0])


def test_the_first_request_is_one_sigterm_to_each() -> None:
    running = Running(worker("a", GRACEFUL), worker("b", GRACEFUL))
    until(lambda: running.text.count("up") == 2, "both up")
    running.supervisor.request_stop()
    assert running.end() == 0
    assert running.text.count("got SIGTERM") == 2
    assert "starting again" not in running.text


def test_no_restart_while_stopping() -> None:
    running = Running(worker("a", GRACEFUL.replace("sys.exit(0)", "sys.exit(7)")))
    running.saw("up")
    running.supervisor.request_stop()
    assert running.end() == 0
    assert running.text.count("up") == 1


def test_a_stop_during_backoff_ends_at_once() -> None:
    policy = Policy(first_delay_s=600, longest_delay_s=600, poll_s=0.02)
    running = Running(worker("w", "raise SystemExit(1)"), policy=policy)
    running.saw("starting again in 600 s")
    running.supervisor.request_stop()
    assert running.end() == 0


def test_a_stubborn_worker_is_waited_for_then_killed_with_its_children() -> None:
    running = Running(worker("w", STUBBORN))
    child = child_pid(running)
    main = running.supervisor.pids()["w"]
    running.supervisor.request_stop()
    running.saw("ignored SIGTERM")
    assert alive(main), "the first request waits for the tasks"
    running.supervisor.request_stop()
    running.saw("ignored SIGQUIT")
    assert running.end() == 0
    until(lambda: not alive(main) and not alive(child), "both gone")
    assert "killed by SIGKILL" in running.text
    assert running.text.count("ignored SIGTERM") == 1, "SIGTERM is forwarded once"


def test_children_of_a_killed_worker_do_not_outlive_it() -> None:
    running = Running(worker("w", STUBBORN), policy=Policy(first_delay_s=600, longest_delay_s=600, poll_s=0.02))
    child = child_pid(running)
    os.kill(running.supervisor.pids()["w"], signal.SIGKILL)
    running.saw("killed by SIGKILL")
    until(lambda: not alive(child), "the child is gone before the worker is started again")
    running.supervisor.request_stop()
    assert running.end() == 0


SIGNALLED = """
import sys
from celery_allocator.launcher import Policy, Supervisor, WorkerCommand
from celery_allocator.launcher.launch import _signals_to
from celery_allocator.launcher.output import Console
command = WorkerCommand("w", (sys.executable, "-u", "-c", sys.argv[1]))
supervisor = Supervisor([command], Console(sys.stdout.buffer, ["w"]), Policy(kill_after_s=0.5, poll_s=0.02))
with _signals_to(supervisor):
    sys.exit(supervisor.run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_launcher_stop_its_workers(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SIGNALLED, GRACEFUL], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "w │ up\n"
        launcher.send_signal(number)
        rest = launcher.stdout.read()
        assert launcher.wait(DEADLINE_S) == 0
    assert "got SIGTERM" in rest


def test_three_signals_kill_and_leave_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", SIGNALLED, STUBBORN], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline().split("child ")[1].split()[0])
        family = psutil.Process(launcher.pid).children(recursive=True)
        assert child in [process.pid for process in family]
        launcher.send_signal(signal.SIGTERM)
        assert "ignored SIGTERM" in launcher.stdout.readline()
        launcher.send_signal(signal.SIGTERM)
        assert "ignored SIGQUIT" in launcher.stdout.readline()
        launcher.send_signal(signal.SIGTERM)
        launcher.stdout.read()
        assert launcher.wait(DEADLINE_S) == 0
    until(lambda: not any(alive(process.pid) for process in family), "no orphan")


# --- the command


@pytest.mark.parametrize(
    ("argv", "own", "extra"),
    [
        (["-A", "proj"], ["-A", "proj"], []),
        (["-A", "proj", "--", "-E", "--", "x"], ["-A", "proj"], ["-E", "--", "x"]),
        (["--", "-A", "other"], [], ["-A", "other"]),
    ],
)
def test_what_follows_two_dashes_is_for_the_workers(argv: list[str], own: list[str], extra: list[str]) -> None:
    assert split_extra(argv) == (own, extra)


def test_a_setting_that_cannot_be_used_is_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "launched.py").write_text("from celery import Celery\napp = Celery('launched')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALLOCATOR_DEVICES", "sim:nonsense")
    assert main(["-A", "launched"]) == 2
    assert "ALLOCATOR_DEVICES" in capsys.readouterr().err


def test_nothing_to_start_is_said() -> None:
    with pytest.raises(SettingsError, match="nothing to start"):
        run_workers("proj", Settings(devices="none"), cpu_worker=False)
