"""A process that a test owns: its own group, its output in a file, and gone when the test ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


#: Below those that the kernel gives to outgoing connections (from 32768 on Linux): one of these would keep a server
#: from coming back to its port, and a client that tries a server that is down can even be connected to itself.
_PORTS = range(20_000, 32_000)
#: Not the generator that Hypothesis and tests seed: all processes would choose the same.
_CHOICE = random.SystemRandom()
_given: set[int] = set()
#: Of this file each process of any tests keeps the bytes locked whose numbers it has claimed. No child inherits that.
_CLAIMS = os.open(Path(tempfile.gettempdir()) / f"ports-of-tests-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)


def claim(number: int) -> bool:
    """Whether no other process of tests has that number; this one has it then, for good. A port is its own number."""
    try:
        fcntl.lockf(_CLAIMS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError:
        return False
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago, and that no other test gets: not while its server is down."""
    while True:
        port = _CHOICE.choice(_PORTS)
        if port in _given or not claim(port):
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any ``ALLOCATOR_*``, ``CELERY_*`` or virtual device, plus ``extra``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ALLOCATOR_", "CELERY_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


class OwnedProcess:
    """A command in its own process group. Restartable; every start appends to the same log file.

    ``user`` is who runs it (only root can choose). Entering the context starts it, leaving kills the whole group.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        user: str | None = None,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self.env = dict(env) if env is not None else clean_environment()
        self.cwd = cwd
        self.user = user
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Process id of the newest start."""
        assert self._popen is not None, "not started"
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the newest start still runs."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit status of the newest start; negative is the signal; ``None`` while it runs."""
        return None if self._popen is None else self._popen.poll()

    def output(self, *, newest_start: bool = False) -> str:
        """Everything it wrote, of every start or only of the newest."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as handle:
            handle.seek(self._log_start if newest_start else 0)
            return handle.read().decode(errors="replace")

    def start(self) -> OwnedProcess:
        """Start it. It must not be running."""
        assert not self.alive, f"already running as {self.pid}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as handle:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                user=self.user,
                start_new_session=True,
            )
        return self

    def wait_for_output(self, text: str, timeout: float = 60.0) -> None:
        """Wait until the newest start wrote ``text``; fails at once when it ends before."""

        def seen() -> bool:
            if text in self.output(newest_start=True):
                return True
            assert self.alive, f"{self.argv[0]} ended with {self.returncode} before {text!r}:\n{self.output()[-4000:]}"
            return False

        wait_until(seen, timeout, lambda: f"{text!r} in the output of {self.argv[0]}:\n{self.output()[-4000:]}")

    def send(self, number: int) -> None:
        """Send a signal to the process itself, not to its children."""
        if self.alive:
            os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 40.0) -> int:
        """Signal it, wait for its end, and return its exit status. Its group is killed if it outlives ``timeout``."""
        assert self._popen is not None, "not started"
        self.send(number)
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.argv[0]} did not end within {timeout:g} s of signal {number}:\n{self.output()[-4000:]}"
            ) from None

    def wait(self, timeout: float) -> int:
        """Wait for its end without a signal and return its exit status."""
        wait_until(lambda: not self.alive, timeout, lambda: f"end of {self.argv[0]}:\n{self.output()[-4000:]}")
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """SIGKILL the whole group, and whatever else descends from it, and wait until none of it runs any more.

        Does nothing when all of it is gone.
        """
        if self._popen is None:
            return
        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.alive:
                # Stopped it starts no child that would not be on the list.
                self.send(signal.SIGSTOP)
                descendants = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._popen.wait(30)
        # PostgreSQL does not start again beside a process of its last life.
        wait_until(lambda: all(map(_is_gone, descendants)), 30, lambda: f"the end of {descendants}", interval=0.005)

    def kill_main(self) -> None:
        """SIGKILL the process alone: its children are left to notice, as after an out-of-memory kill."""
        assert self._popen is not None, "not started"
        self.send(signal.SIGKILL)
        self._popen.wait(30)

    def __enter__(self) -> OwnedProcess:
        return self if self.alive else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _is_gone(process: psutil.Process) -> bool:
    """Whether it runs no more; whoever inherited it may not have waited for it yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
