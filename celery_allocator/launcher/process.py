"""One worker's process, its group and its pipe."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from celery_allocator.launcher.output import LineSplitter
from celery_allocator.launcher.plan import WorkerCommand

_READ_SIZE = 65_536


class WorkerProcess:
    """A started worker. It leads a process group (and session) of its own, so that a Ctrl-C on the terminal reaches
    only the launcher, and so that whatever it leaves behind can be ended with it.
    """

    def __init__(self, command: WorkerCommand) -> None:
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **command.environ},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._lines = LineSplitter()

    @property
    def pid(self) -> int:
        """Process id of the worker's main process, which is also its group's id."""
        return self._process.pid

    @property
    def pipe_fd(self) -> int:
        """File descriptor that the worker's stdout and stderr arrive on."""
        return self._pipe.fileno()

    def uptime_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started_at

    def read(self) -> tuple[list[bytes], bool]:
        """The lines that have arrived, and whether the pipe is still open."""
        try:
            data = os.read(self._pipe.fileno(), _READ_SIZE)
        except BlockingIOError:
            return [], True
        return (self._lines.feed(data), True) if data else ([], False)

    def send(self, number: int) -> None:
        """Signal the main process alone: Celery's pool children are its own to end."""
        self._process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to everything in the worker's group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def has_exited(self) -> bool:
        """Whether the main process has ended. It is not reaped yet, so its id cannot belong to anyone else."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> tuple[int, list[bytes]]:
        """End what the exited worker left in its group, and return its exit code and its last lines."""
        # While the main process is a zombie its id, and with it the group's, cannot be taken by a stranger.
        self.kill_group()
        code = self._process.wait()
        lines: list[bytes] = []
        with self._pipe:
            try:
                while data := os.read(self._pipe.fileno(), _READ_SIZE):
                    lines += self._lines.feed(data)
            except BlockingIOError:
                pass  # a process that left the group still holds the pipe: what it writes is no longer ours
        return code, lines + self._lines.flush()
