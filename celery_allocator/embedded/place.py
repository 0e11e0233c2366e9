"""Folders and files of an embedded server, and the lock that its callers take in turns."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery_allocator.errors import EmbeddedServerError

#: Bytes of a socket's path that every system takes (Linux 107, macOS 103).
_SOCKET_PATH_BYTES = 103

#: Where sockets go whose own folder has too long a path. A fixed place, so that every caller looks there.
_SHORT_ROOT = Path("/tmp")  # noqa: S108 (the folder made there is checked to be this user's alone)

_POLL_S = 0.01


@dataclass(frozen=True)
class Place:
    """The paths of the server in ``directory``, which is absolute and free of links."""

    directory: Path

    @property
    def record(self) -> Path:
        """Which process the server is (see :mod:`celery_allocator.embedded.process`)."""
        return self.directory / "server.pid"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.directory / "server.log"

    @property
    def turn(self) -> Path:
        """Locked by the one caller that starts or stops the server."""
        return self.directory / "server.lock"

    @property
    def alive(self) -> Path:
        """Locked by the server process itself for as long as it lives."""
        return self.directory / "server.alive"

    @property
    def socket(self) -> Path:
        """The server's socket; in a folder of its own under ``/tmp`` if the path would be too long."""
        socket = self.directory / "server.sock"
        if len(os.fsencode(socket)) <= _SOCKET_PATH_BYTES:
            return socket
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return _SHORT_ROOT / f"celery-allocator-{os.getuid()}-{digest}" / "server.sock"

    def prepare(self) -> None:
        """Make the folders, for this user alone. Raises :class:`EmbeddedServerError` if one is somebody else's."""
        for folder in (self.directory, self.socket.parent):
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
                status = folder.lstat()
            except OSError as error:
                raise EmbeddedServerError(f"cannot make the embedded server's folder {folder}: {error}") from error
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                kind = "a link" if stat.S_ISLNK(status.st_mode) else f"user {status.st_uid}'s"
                raise EmbeddedServerError(
                    f"the embedded server's folder {folder} must be a folder of user {os.getuid()}, but it is {kind}. "
                    "Choose another by ALLOCATOR_EMBEDDED_DIR"
                )
            if stat.S_IMODE(status.st_mode) != 0o700:
                folder.chmod(0o700)


@contextmanager
def turn(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lock of ``path``, waiting up to ``deadline_s`` seconds for whoever has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + deadline_s
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"another process has been starting or stopping a server for long: {path}")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)  # which unlocks


def try_lock(descriptor: int) -> bool:
    """Lock the open file, or return False at once if somebody else has it locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """True if some process holds the lock of ``path``."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
