"""Start, reuse and stop the embedded server.

It listens on a Unix socket in a folder of its user alone and on no network. It outlives whoever started it, later
commands of the same user find it there, and what it has acknowledged survives its being killed (append-only file), but
for what came in the moment in which a slow disk syncs.
"""

from __future__ import annotations

import os
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_allocator.embedded.binary import find_binary
from celery_allocator.embedded.place import Place, is_locked, try_lock, turn
from celery_allocator.embedded.process import Record, launch
from celery_allocator.errors import EmbeddedServerError
from celery_allocator.settings import Settings

#: A large append-only file takes its time to load; a server that is loading says so.
_START_DEADLINE_S = 10.0
_LOAD_DEADLINE_S = 120.0
_STOP_DEADLINE_S = 20.0
_ANSWER_DEADLINE_S = 2.0
_POLL_S = 0.01
_LOG_LINES = 12


@dataclass(frozen=True)
class ServerStatus:
    """The embedded server at one moment. ``None``: not known, for it does not answer."""

    running: bool
    url: str
    pid: int | None
    version: str | None
    binary: str | None
    directory: str


class EmbeddedServer:
    """The server whose data lies in ``directory``. Making the object starts nothing and writes nothing.

    ``binary`` is the server program. Unset, it is the one that ran there last, since another one's version may not
    read its data, or else the one that :func:`find_binary` finds.
    """

    def __init__(self, directory: Path | str, binary: Path | str | None = None) -> None:
        self.place = Place(Path(directory).resolve())
        self._binary = None if binary is None else Path(binary)

    @property
    def url(self) -> str:
        """The server's URL for redis-py: ``unix:///…/server.sock``."""
        return f"unix://{quote(str(self.place.socket))}"

    @property
    def celery_url(self) -> str:
        """The server's URL as a Celery broker or result backend: ``redis+socket:///…/server.sock``."""
        return f"redis+socket://{quote(str(self.place.socket))}"

    def ensure(self) -> str:
        """The URL of the server, which is started if it does not answer.

        Any number of callers may race: one starts it, the others find it. Raises :class:`EmbeddedServerError`.
        """
        self.place.prepare()
        if self._info() is None:
            with turn(self.place.turn, _LOAD_DEADLINE_S):
                if self._lives():
                    self._wait_for_answer()
                else:
                    self._start()
        return self.url

    def status(self) -> ServerStatus:
        """What runs there now. Starts nothing."""
        info = self._info() or {}
        record = Record.load(self.place.record)
        known = record if record is not None and record.runs else None
        return ServerStatus(
            running=bool(info),
            url=self.url,
            pid=known.pid if known is not None else info.get("process_id"),
            version=_version(info),
            binary=known.binary if known is not None else info.get("executable"),
            directory=str(self.place.directory),
        )

    def stop(self) -> bool:
        """Stop the server and wait for its end; its data stays. False if none runs.

        Only the process that the record names is stopped, and only if it is that very process still.
        """
        if not self.place.directory.is_dir():
            return False
        self.place.prepare()
        with turn(self.place.turn, _LOAD_DEADLINE_S):
            record = Record.load(self.place.record)
            if record is None or not record.runs:
                if self._info() is not None:
                    raise EmbeddedServerError(
                        f"a server answers at {self.place.socket}, but {self.place.record} does not name it, so it is "
                        "not stopped from here. To stop it by hand, send it SHUTDOWN"
                    )
                return False
            self._terminate(record)
            return True

    def _terminate(self, record: Record) -> None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(record.pid).terminate()
        deadline = time.monotonic() + _STOP_DEADLINE_S
        while record.runs:  # not by waiting for the id to vanish: where nobody reaps orphans, it stays
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the embedded server (pid {record.pid}) has not stopped for {_STOP_DEADLINE_S:.0f} s. "
                    f"{self._log_tail()}"
                )
            time.sleep(_POLL_S)

    def _lives(self) -> bool:
        """True if a server process of this folder runs, whether or not it answers.

        The record decides where it can be checked. Where it cannot (lost, or written in another container), the lock
        that the server holds decides: two servers on one append-only file would ruin it.
        """
        record = Record.load(self.place.record)
        if record is not None and record.can_be_checked:
            return record.runs
        return is_locked(self.place.alive)

    def _start(self) -> None:
        """Start the server and wait until it answers. Only in turn."""
        place = self.place
        before = Record.load(place.record)
        binary = self._binary or _usable(before) or find_binary()
        place.alive.unlink(missing_ok=True)  # a fresh lock: nobody but the new server can hold it
        alive = os.open(place.alive, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try_lock(alive)
            with place.log.open("a") as log:
                log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} starting {binary}\n")
            pid = launch(self._command(binary), place.log, keep_open=alive)
        finally:
            os.close(alive)
        record = Record.of(pid, binary)
        if record is not None:
            record.save(place.record)
        try:
            self._wait_for_answer()
        except EmbeddedServerError as error:
            if self._lives():
                raise
            if before is None:  # the record is of what has run, not of what was tried
                place.record.unlink(missing_ok=True)
                raise
            before.save(place.record)
            if before.binary == str(binary):
                raise
            raise EmbeddedServerError(
                f"{error}\nThe data in {place.directory} were last written by {before.binary}, and {binary} may not be "
                "able to read them. Install that one again, or move the folder away"
            ) from error

    def _command(self, binary: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.place.socket),
            "unixsocketperm": "700",
            "dir": str(self.place.directory),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        return [str(binary), *(text for name, value in options.items() for text in (f"--{name}", value))]

    def _wait_for_answer(self) -> None:
        began = time.monotonic()
        loading = False
        while True:
            try:
                if self._info(say_loading=True) is not None:
                    return
            except redis.BusyLoadingError:
                loading = True
            waited = time.monotonic() - began
            if not self._lives():
                raise EmbeddedServerError(f"the embedded server ended at its start. {self._log_tail()}")
            if waited > (_LOAD_DEADLINE_S if loading else _START_DEADLINE_S):
                raise EmbeddedServerError(
                    f"the embedded server runs, but has not answered at {self.place.socket} for {waited:.0f} s. "
                    f"{self._log_tail()}"
                )
            time.sleep(_POLL_S)

    def _info(self, say_loading: bool = False) -> dict[str, Any] | None:
        """The server's ``INFO server``; ``None`` if it does not answer."""
        with closing(
            redis.Redis(
                unix_socket_path=str(self.place.socket),
                socket_timeout=_ANSWER_DEADLINE_S,
                retry=Retry(NoBackoff(), 0),
            )
        ) as client:
            try:
                client.ping()
                return dict(client.info("server"))
            except redis.BusyLoadingError:
                if say_loading:
                    raise
                return None
            except (redis.RedisError, OSError):
                return None

    def _log_tail(self) -> str:
        try:
            lines = self.place.log.read_text(errors="replace").splitlines()
        except OSError as error:
            return f"Its log cannot be read: {error}"
        return "\n".join([f"The end of its log {self.place.log}:", *lines[-_LOG_LINES:]])


def default_directory(settings: Settings | None = None) -> Path:
    """The folder as set, else ``celery-allocator`` in the user's state folder."""
    settings = Settings.load() if settings is None else settings
    if settings.embedded_dir:
        return Path(settings.embedded_dir).expanduser().absolute()
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        # A relative path there is to be ignored, says the XDG specification.
        root = state if state.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise EmbeddedServerError(
            f"no home folder for the embedded server ({error}): set ALLOCATOR_EMBEDDED_DIR"
        ) from error
    return root / "celery-allocator"


def ensure_server(settings: Settings | None = None) -> str:
    """The URL of this user's embedded server, which is started if it does not run."""
    return EmbeddedServer(default_directory(settings)).ensure()


def _usable(record: Record | None) -> Path | None:
    """The program that the record names, if it is still there."""
    return Path(record.binary) if record is not None and os.access(record.binary, os.X_OK) else None


def _version(info: dict[str, Any]) -> str | None:
    for name in ("valkey", "redis"):
        if f"{name}_version" in info:
            return f"{name} {info[f'{name}_version']}"
    return None
