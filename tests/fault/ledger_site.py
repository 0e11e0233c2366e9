"""Sites whose ledger is a server of its own, behind a proxy: broker and results stay up whatever is done to it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import redis

from tests.fault.registry import Layout
from tests.fault.site import Site
from tests.support.redis_server import RedisServer
from tests.support.replica import ReplicaPair
from tests.support.tcp_proxy import TcpProxy

#: Keys that say nothing, so that loading them takes a while where the server is told to load slowly.
_FILLERS = 400


class LedgerSite(Site):
    """The ledger's server writes every command to disk before it answers; ``proxy`` stands before it."""

    #: Options of the ledger's server.
    options: tuple[str, ...] = ("--appendfsync", "always")

    def __init__(self, layout: Layout, directory: Path) -> None:
        super().__init__(layout, directory)
        self.server = RedisServer(directory / "slots", *self.options)
        self.proxy = TcpProxy(("127.0.0.1", self.server.port))

    def start_servers(self) -> str:
        self.server.start()
        return super().start_servers()

    @property
    def ledger_url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    def mend(self) -> None:
        self.server.ensure()
        self.proxy.latency_s = 0.0
        self.proxy.heal()
        super().mend()

    def close(self) -> None:
        super().close()
        self.proxy.close()
        self.server.kill()

    def config(self, **options: object) -> None:
        """Change the server's configuration."""
        with self.server.client() as client:
            for name, value in options.items():
                client.config_set(name.replace("_", "-"), value)


class ForgetfulSite(LedgerSite):
    """The ledger's server keeps nothing on disk."""

    options = ("--appendonly", "no")


class SlowlyLoadingSite(LedgerSite):
    """The ledger's server takes seconds to load its file, and says LOADING meanwhile."""

    options = ("--appendfsync", "always", "--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")

    def start_servers(self) -> str:
        url = super().start_servers()
        with self.server.client() as client:
            client.mset({f"filler-{n}": "x" * 64 for n in range(_FILLERS)})
        return url

    def compact(self) -> None:
        """Rewrite the file, so that it is loaded key by key."""
        with self.server.client() as client:
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.05)

    def kill_and_start(self) -> bool:
        """Restart without waiting for the end of loading; True if it was seen to load."""
        self.server.kill()
        self.server.process.start()
        deadline = time.monotonic() + 20
        loading = False
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.ConnectionError), self.server.client(retry=None) as client:
                try:
                    client.get("filler-0")
                except redis.BusyLoadingError:
                    loading = True
                else:
                    return loading
            time.sleep(0.02)
        return loading


class ReplicaSite(Site):
    """The ledger's server has a replica that clients are given when it dies."""

    def __init__(self, layout: Layout, directory: Path) -> None:
        super().__init__(layout, directory)
        self.pair = ReplicaPair(directory / "slots")

    def start_servers(self) -> str:
        self.pair.start()
        return super().start_servers()

    @property
    def ledger_url(self) -> str:
        return self.pair.url

    def mend(self) -> None:
        self.pair.ensure()
        super().mend()

    def close(self) -> None:
        super().close()
        self.pair.kill()
