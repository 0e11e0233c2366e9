"""A primary and its replica behind one address, with a link between them that a test can cut."""

from __future__ import annotations

from pathlib import Path

import redis

from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

#: Seconds for the replica to have everything.
_SYNC_S = 20.0


class ReplicaPair:
    """What clients know as one server. :meth:`fail_over` gives them the replica, without the writes that it missed.

    ``url`` stays the same throughout. After a failover the roles are changed, and :meth:`rejoin` makes the old primary
    the replica of the new one.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        # No pause before a full copy, and none to batch it for several replicas.
        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--repl-timeout", "5", *options)
        self.primary = RedisServer(directory / "a", *fast)
        self.replica = RedisServer(directory / "b", *fast)
        self.proxy = TcpProxy(("127.0.0.1", self.primary.port))
        #: From the replica to its primary.
        self.link = TcpProxy(("127.0.0.1", self.primary.port))

    @property
    def url(self) -> str:
        """URL of whichever server is the primary."""
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    def client(self, **options: object) -> redis.Redis:
        """A new client of the primary; the caller closes it."""
        return self.primary.client(**options)

    def start(self) -> ReplicaPair:
        """Start both, and wait until the replica has everything."""
        self.primary.start()
        self.replica.start()
        self._follow()
        return self

    def ensure(self) -> None:
        """Bring back what a test left down."""
        self.primary.ensure()
        self.proxy.heal()
        if not self.replica.process.alive:
            self.rejoin()

    def stop_copying(self) -> None:
        """Cut the link: what is written from now on is not on the replica."""
        self.link.cut()

    def fail_over(self) -> None:
        """Kill the primary, make the replica the primary, and give it to the clients."""
        self.proxy.refuse()
        self.primary.kill()
        self.link.drop()
        with self.replica.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        self.primary, self.replica = self.replica, self.primary
        self.proxy.switch(("127.0.0.1", self.primary.port))
        self.proxy.heal()

    def rejoin(self) -> None:
        """Start the old primary as the replica of the new one."""
        self.replica.ensure()
        self._follow()

    def kill(self) -> None:
        """End everything."""
        for each in (self.proxy, self.link):
            each.close()
        for server in (self.primary, self.replica):
            server.kill()

    def copied(self) -> bool:
        """Whether the replica has all that the primary has."""
        try:
            with self.primary.client() as primary, self.replica.client() as replica:
                there, here = primary.info("replication"), replica.info("replication")
        except redis.RedisError:
            return False
        offset = here.get("slave_repl_offset")
        return here.get("master_link_status") == "up" and offset == there["master_repl_offset"]

    def _follow(self) -> None:
        self.link.switch(("127.0.0.1", self.primary.port))
        self.link.heal()
        with self.replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", self.link.port)
        wait_until(self.copied, _SYNC_S, "the replica to have everything")
