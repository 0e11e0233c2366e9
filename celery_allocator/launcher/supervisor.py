"""Keeps workers running: restarts with backoff, gives up on one that cannot start, stops them gracefully."""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from celery_allocator.launcher.output import Console
from celery_allocator.launcher.plan import WorkerCommand
from celery_allocator.launcher.process import WorkerProcess


@dataclass(frozen=True)
class Policy:
    """When a worker is started again, and how hard it is stopped. Times are in seconds.

    A worker that ends with a failure is started again after ``first_delay_s``, then twice that, and so on up to
    ``longest_delay_s``. One that ran ``healthy_s`` starts over at the first delay; one that failed ``fast_failures``
    times in a row without getting that far is given up. One that exits with code 0 was asked to (``celery control
    shutdown``, a SIGTERM by hand) and stays stopped. After the second request to stop, what still runs
    ``kill_after_s`` later is killed.
    """

    first_delay_s: float = 1.0
    longest_delay_s: float = 30.0
    healthy_s: float = 60.0
    fast_failures: int = 5
    kill_after_s: float = 10.0
    poll_s: float = 0.2

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row (1 for the first)."""
        return float(min(self.longest_delay_s, self.first_delay_s * 2 ** (failures - 1)))


class Stopping(enum.IntEnum):
    """How far a stop has gone; each request to stop goes one further."""

    NO = 0  #: running
    WARM = 1  #: SIGTERM was sent once: workers finish what they run
    COLD = 2  #: SIGQUIT was sent: workers drop what they run
    KILL = 3  #: SIGKILL was sent to every group


@dataclass
class _Ward:
    """One worker under supervision."""

    command: WorkerCommand
    process: WorkerProcess | None = None
    failures: int = 0
    start_at: float | None = 0.0  # time.monotonic(); None: not to be started again
    gave_up: bool = False


@dataclass
class _State:
    stopping: Stopping = Stopping.NO
    requested: int = 0
    kill_at: float | None = None
    wards: list[_Ward] = field(default_factory=list)


class Supervisor:
    """Runs ``commands`` until they have ended or :meth:`request_stop` was called and obeyed."""

    def __init__(self, commands: Sequence[WorkerCommand], console: Console, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._console = console
        self._state = _State(wards=[_Ward(command) for command in commands])
        self._selector = selectors.DefaultSelector()
        self._unread = False
        # Written by request_stop(), which a signal handler or another thread calls, to end the select() at once.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)

    def request_stop(self) -> None:
        """Ask all workers to stop; a second call no longer waits for their tasks, a third kills them."""
        self._state.requested += 1
        with contextlib.suppress(OSError):  # full of earlier requests, or the supervisor has ended
            os.write(self._wake_write, b"\0")

    def run(self) -> int:
        """Supervise until no worker is left. Returns 0, or 1 when a worker was given up."""
        try:
            while self._step():
                pass
        finally:
            self._end_everything()
        return 1 if any(ward.gave_up for ward in self._state.wards) else 0

    def pids(self) -> dict[str, int]:
        """Process id of each worker that runs now, by its name."""
        wards = self._state.wards
        return {ward.command.name: ward.process.pid for ward in wards if ward.process is not None}

    def _step(self) -> bool:
        """One round. False once nothing runs and nothing is to be started."""
        self._start_due()
        if not any(ward.process or ward.start_at is not None for ward in self._state.wards):
            return False
        self._read_output()
        self._reap_exited()
        self._advance_stop()
        return True

    def _start_due(self) -> None:
        now = time.monotonic()
        for ward in self._state.wards:
            if ward.process is None and ward.start_at is not None and ward.start_at <= now:
                try:
                    ward.process = WorkerProcess(ward.command)
                except OSError as error:  # no memory or no process left: the other workers go on
                    self._print(ward, [self._decide(ward, f"cannot start: {error}", 0.0).encode()])
                else:
                    self._selector.register(ward.process.pipe_fd, selectors.EVENT_READ, ward)

    def _read_output(self) -> None:
        for key, _events in self._selector.select(self._policy.poll_s):
            ward = key.data
            if ward is None:
                os.read(self._wake_read, 4096)
                continue
            lines, is_open = ward.process.read()
            if not is_open:
                self._selector.unregister(key.fd)
            self._print(ward, lines)

    def _reap_exited(self) -> None:
        for ward in self._state.wards:
            if ward.process is None or not ward.process.has_exited():
                continue
            process, ward.process = ward.process, None
            if process.pipe_fd in self._selector.get_map():
                self._selector.unregister(process.pipe_fd)
            uptime_s = process.uptime_s()
            code, lines = process.reap()
            ended = f"{_describe(code)} after {uptime_s:.1f} s"
            note = f"[launcher] {ended}: stopped"
            if code == 0 or self._state.stopping is not Stopping.NO:
                ward.start_at = None
            else:
                note = self._decide(ward, ended, uptime_s)
            self._print(ward, [*lines, note.encode()])

    def _decide(self, ward: _Ward, failure: str, uptime_s: float) -> str:
        """Start the failed worker again or give it up; returns the line that says so."""
        ward.start_at = None
        ward.failures = 1 if uptime_s >= self._policy.healthy_s else ward.failures + 1
        if ward.failures >= self._policy.fast_failures:
            ward.gave_up = True
            return f"[launcher] {failure}: given up after {ward.failures} failures in a row"
        delay_s = self._policy.delay_s(ward.failures)
        ward.start_at = time.monotonic() + delay_s
        return f"[launcher] {failure}: starting again in {delay_s:g} s"

    def _advance_stop(self) -> None:
        state = self._state
        if state.kill_at is not None and time.monotonic() >= state.kill_at:
            state.requested = max(state.requested, Stopping.KILL)
        wanted = Stopping(min(state.requested, Stopping.KILL))
        while state.stopping < wanted:
            state.stopping = Stopping(state.stopping + 1)
            for ward in state.wards:
                ward.start_at = None
                if ward.process is not None:
                    self._stop(ward.process, state.stopping)
            if state.stopping is Stopping.COLD:
                state.kill_at = time.monotonic() + self._policy.kill_after_s

    @staticmethod
    def _stop(process: WorkerProcess, how: Stopping) -> None:
        if how is Stopping.KILL:
            process.kill_group()
        else:
            process.send(signal.SIGTERM if how is Stopping.WARM else signal.SIGQUIT)

    def _print(self, ward: _Ward, lines: Sequence[bytes]) -> None:
        if self._unread:
            return
        try:
            for line in lines:
                self._console.line(ward.command.name, line)
        except BrokenPipeError:  # the terminal or the pipe behind us is gone: stop as if it had said so
            self._unread = True
            self.request_stop()

    def _end_everything(self) -> None:
        """Nothing may outlive the supervisor, also when it ends by an error of its own."""
        for ward in self._state.wards:
            if ward.process is not None:
                ward.process.kill_group()
                ward.process.reap()
                ward.process = None
        self._selector.close()
        os.close(self._wake_read)
        # The number of a closed descriptor is given to the next file opened: request_stop() must not write into that.
        closing, self._wake_write = self._wake_write, -1
        os.close(closing)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
