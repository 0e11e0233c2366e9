"""What a demo starts, and stops again however it ends: a server, and the launcher with its workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from celery_allocator.embedded import EmbeddedServer
from celery_allocator.errors import AllocatorError

#: Seconds that the workers get to stop by themselves, then to drop what they run, then to be killed.
_PATIENCE_S = (20.0, 10.0, 5.0)
#: The same when the demo was interrupted or failed: nobody waits for the tasks any more.
_HURRY_S = (0.5, 5.0, 5.0)
_PREFIXES = ("ALLOCATOR_", "CELERY_")


class DemoError(AllocatorError):
    """The demo cannot go on."""

    code = "demo_failed"


class Interrupted(BaseException):
    """A signal asked the demo to end. No ``Exception``, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into :class:`Interrupted`, but never inside :meth:`deferred`.

    Python reports and drops what is raised while a finalizer happens to run. So the signal is also kept, :meth:`check`
    raises it again, and there is no report: a user who presses Ctrl-C has nothing to learn from a traceback. Later
    signals change nothing: half of a stop would leave processes behind.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._received: int | None = None
        self._over = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within; the former handlers are put back after it."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        report = sys.unraisablehook

        def report_others(dropped: sys.UnraisableHookArgs) -> None:
            if not issubclass(dropped.exc_type, Interrupted):
                report(dropped)

        sys.unraisablehook = report_others
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            self.finish()
            for number, handler in previous.items():
                signal.signal(number, handler)
            sys.unraisablehook = report

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what is within finish; a signal that came meanwhile is raised after it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self._received is not None and not self._over:
            raise Interrupted(self._received)

    def finish(self) -> None:
        """From here on signals are ignored: everything is being stopped."""
        self._over = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        is_first = self._received is None
        if is_first:
            self._received = number
        if is_first and not self._deferring:
            self.check()


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set ``values`` in this process's environment, and no other ``ALLOCATOR_*`` or ``CELERY_*``; undone at the end.

    The demo's own app and its workers read their configuration from there, and a user's settings must not reach them.
    """
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Session:
    """A server in a private folder and, after :meth:`start_workers`, the launcher. Use as a context manager."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._stack = ExitStack()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self._patience_s = _PATIENCE_S

    def __enter__(self) -> Session:
        try:
            with self._interrupts.deferred():
                # Short, because the path of a Unix socket may have no more than 107 characters.
                directory = Path(tempfile.mkdtemp(prefix="allocator-demo-"))
                self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
                self.server = EmbeddedServer(directory / "server")
                self._stack.callback(self.server.stop)
                self.server.ensure()
        except BaseException as error:  # __exit__ is not called for what fails here, a deferred signal included
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._interrupts.finish()
        if kind is not None:
            self._patience_s = _HURRY_S
        self._stack.close()

    def start_workers(self, app: str, log: Path) -> None:
        """Start the launcher; what it and its workers write goes to ``log``."""
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        argv = [sys.executable, "-m", "celery_allocator.launcher", "-A", app, "--", "--loglevel", "INFO"]
        self._log = log
        with self._interrupts.deferred(), log.open("wb") as output:
            self._launcher = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # a Ctrl-C is for the demo, which then stops the workers in order
            )
            self._stack.callback(self._stop, self._launcher)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come, and :class:`DemoError` if the launcher has ended."""
        self._interrupts.check()
        if self._launcher is not None and self._launcher.poll() is not None and self._log is not None:
            code, tail = self._launcher.returncode, self._log.read_text(errors="replace").splitlines()[-15:]
            raise DemoError("\n".join([f"the workers ended with exit code {code}; {self._log} ends in:", *tail]))

    def _stop(self, launcher: subprocess.Popen[bytes]) -> None:
        """Ask the launcher to stop its workers, three times with growing force."""
        for patience_s in self._patience_s:
            launcher.terminate()
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(patience_s)
                return
        workers = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
