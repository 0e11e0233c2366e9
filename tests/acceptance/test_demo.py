"""The demo from its command, as a user runs it: what it shows, what it leaves, and that it leaves nothing running."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.marked import mark, marked
from tests.support.processes import ROOT, OwnedProcess, clean_environment
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RUN_S = 240.0
STOP_S = 40.0


class Demo(OwnedProcess):
    """``celery-allocator demo`` with a mark on everything it starts."""

    def __init__(self, directory: Path, *args: str) -> None:
        self.mark = mark()
        self.output_folder = directory / "out"
        self.temporary = Path(tempfile.mkdtemp(prefix="t-"))  # short: it will hold a Unix socket
        argv = [sys.executable, "-m", "celery_allocator", "demo", "--output", str(self.output_folder), *args]
        # A user's settings must not reach the demo.
        foreign = {"ALLOCATOR_DEVICES": "sim:9x1", "CELERY_BROKER_URL": "redis://nowhere.invalid:1/0"}
        extra = {**self.mark, **foreign, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        super().__init__(argv, directory / "demo.log", env=clean_environment(extra), cwd=directory)

    def left(self) -> list[str]:
        """Processes and files that it has not cleaned up."""
        return [str(process) for process in marked(self.mark)] + [str(path) for path in self.temporary.iterdir()]

    def leaves_nothing(self) -> None:
        """Wait for it: what was killed at the very end, with its group, takes a moment to be gone."""
        wait_until(lambda: not self.left(), STOP_S, lambda: f"{self.left()} to be gone")

    def close(self) -> None:
        for process in marked(self.mark):
            process.kill()
        for path in sorted(self.temporary.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.temporary.rmdir()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path, "--tasks", "16")
    yield running
    running.close()


def test_the_demo_runs_its_tasks_and_proves_them_right(demo: Demo) -> None:
    demo.start()
    assert demo.wait(RUN_S) == 0, demo.output()
    text = demo.output()
    assert "16/16 done" in text, "no terminal: plain lines"
    assert "\x1b[" not in text
    for part in ("Tasks per device", "gpu_0", "gpu_1", "had to wait", "of 8192 MB", "All right"):
        assert part in text
    outputs = demo.output_folder / "outputs"
    assert f"Outputs: {outputs}" in text
    readings = [json.loads(path.read_text()) for path in outputs.glob("inference_*.json")]
    assert readings and all(len(reading["labels"]) == 400 for reading in readings)
    pictures = list(outputs.glob("rendering_*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (160, 120)
    records = [json.loads(path.read_text()) for path in (demo.output_folder / "records").iterdir()]
    assert len(records) == 16
    assert {record["gpu_id"] for record in records} == {"gpu_0", "gpu_1", None}
    assert all(record["cpu_cores"] and record["token"] > 0 for record in records)
    demo.leaves_nothing()


def test_json_is_alone_on_stdout(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--tasks", "4", "--json", "--devices", "sim:1x4096")
    # The log takes both streams; here stdout goes to a file of its own.
    answer = tmp_path / "answer.json"
    demo.argv = ["/bin/sh", "-c", f'exec "$@" > {answer}', "sh", *demo.argv]
    try:
        demo.start()
        assert demo.wait(RUN_S) == 0, demo.output()
        summary = json.loads(answer.read_text())
        assert summary["ok"] is True
        assert summary["tasks"] == 4
        assert sum(summary["per_device"].values()) == 4
        memory = next(peak for peak in summary["peaks"] if peak["resource"].endswith("gpu_0 memory"))
        assert 0 < memory["held"] <= memory["capacity"] == 4096
        demo.leaves_nothing()
    finally:
        demo.close()


@pytest.mark.parametrize(
    ("when", "number"),
    [("server at", signal.SIGINT), (" running, ", signal.SIGTERM)],
    ids=["starting-SIGINT", "running-SIGTERM"],
)
def test_a_signal_stops_everything(demo: Demo, number: signal.Signals, when: str) -> None:
    demo.start()
    demo.wait_for_output(when, RUN_S)
    workers_and_server = 5 if when == " running, " else 1
    assert len(marked(demo.mark)) > workers_and_server, "the mark finds what runs"
    demo.send(number)
    demo.send(number)  # an impatient second one must not leave half of it running
    assert demo.wait(STOP_S) == 128 + number
    demo.leaves_nothing()
    assert "Traceback" not in demo.output()
    assert "nothing is left running" in demo.output()


def test_ctrl_c_on_a_terminal(demo: Demo) -> None:
    """On a terminal Ctrl-C reaches the whole foreground group; the live table is shown there."""
    controller, terminal = pty.openpty()
    pid = os.fork()
    if pid == 0:
        os.login_tty(terminal) if hasattr(os, "login_tty") else _login_tty(terminal)
        os.chdir(demo.cwd)
        os.execve(demo.argv[0], demo.argv, {**demo.env, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50"})
    os.close(terminal)
    shown = b""
    try:
        while b"starts in about" not in shown:
            shown += os.read(controller, 65536)
        os.write(controller, b"\x03")
        try:
            while data := os.read(controller, 65536):
                shown += data
        except OSError:
            pass  # the terminal's last user is gone
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(controller)
    assert os.waitstatus_to_exitcode(status) == 130, shown[-3000:].decode(errors="replace")
    assert "━".encode() in shown, "bars"
    demo.leaves_nothing()


def _login_tty(terminal: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--tasks", "1")
    demo.output_folder.mkdir()
    (demo.output_folder / "precious").write_text("mine")
    try:
        demo.start()
        assert demo.wait(60) == 1
        assert "choose another folder" in demo.output()
        assert [path.name for path in demo.output_folder.iterdir()] == ["precious"]
    finally:
        demo.close()
