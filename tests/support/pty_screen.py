"""A program under a pseudo-terminal of a given size, and what a person would see on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyte

from tests.support.waiting import wait_until


class PtyScreen:
    """Runs ``argv`` in a session of its own; a thread feeds what it writes to an emulated terminal."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, columns: int = 80, lines: int = 24
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        #: Everything that was written, escape sequences included.
        self.raw = b""
        self._fd, slave = pty.openpty()
        self._resize(columns, lines)
        # The first terminal that a new session opens is its own.
        opens = ["/bin/sh", "-c", 'exec "$@" <>"$0" >&0 2>&1', os.ttyname(slave), *argv]
        # What says how large the window is, is the window.
        kept = {key: value for key, value in env.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            opens, env={"TERM": "xterm-256color", **kept}, cwd=cwd, start_new_session=True, stdin=subprocess.DEVNULL
        )
        self._slave: int | None = slave
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def lines(self) -> list[str]:
        """What stands on the screen now, without blanks at line ends."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines)

    def type(self, keys: str) -> None:
        """Type on its keyboard."""
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size."""
        with self._lock:
            self._screen.resize(lines, columns)
        self._resize(columns, lines)

    def wait_for(self, *texts: str, timeout: float = 30) -> str:
        """Wait until all of these stand on the screen; returns the screen."""
        wait_until(lambda: all(text in self.text for text in texts), timeout, lambda: f"{texts} on\n{self.text}")
        return self.text

    def wait_until_gone(self, text: str, timeout: float = 30) -> None:
        """Wait until this does not stand on the screen any more."""
        wait_until(lambda: text not in self.text, timeout, lambda: f"{text!r} to go from\n{self.text}")

    def wait_for_end(self, timeout: float = 30) -> int:
        """Wait until the program ends; returns its exit code."""
        wait_until(lambda: self.process.poll() is not None, timeout, lambda: f"the end of what shows\n{self.text}")
        self._hang_up()
        return self.process.returncode

    def close(self) -> None:
        """Kill it and all that it started in its session, if it runs still."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self._hang_up()
        os.close(self._fd)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _hang_up(self) -> None:
        """Let the thread read what is left, and end."""
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
        self._reader.join(5)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the other side is closed
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)


@contextmanager
def pty_screen(argv: Sequence[str], **options: object) -> Iterator[PtyScreen]:
    """The same, ended at the end."""
    screen = PtyScreen(argv, **options)
    try:
        yield screen
    finally:
        screen.close()
