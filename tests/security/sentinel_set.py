"""A primary, its replica and Sentinels that watch them, each with a password."""

from __future__ import annotations

import contextlib
from pathlib import Path

import redis

from tests.support.processes import OwnedProcess, clean_environment, free_port
from tests.support.redis_server import RedisServer, redis_binary
from tests.support.waiting import wait_until

MASTER = "gpus"
PASSWORD, SENTINEL_PASSWORD = "server-secret", "sentinel-secret"
#: Seconds for copies and elections.
_SOON_S = 30.0


class GuardedServer(RedisServer):
    """A server that asks for a password."""

    def __init__(self, directory: Path) -> None:
        # No pause before a full copy, and none to batch it for several replicas.
        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        super().__init__(directory, "--requirepass", PASSWORD, "--masterauth", PASSWORD, *fast)

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis.from_url(self.socket_url, password=PASSWORD, **options)


class SentinelProcess:
    """One Sentinel. It writes what it learns into its own configuration."""

    def __init__(self, directory: Path, watched: RedisServer, quorum: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        conf = directory / "sentinel.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\nrequirepass {SENTINEL_PASSWORD}\n"
            f"sentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {watched.port} {quorum}\n"
            f"sentinel auth-pass {MASTER} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\n"
            f"sentinel failover-timeout {MASTER} 10000\n"
        )
        self.process = OwnedProcess(
            [redis_binary(), str(conf), "--sentinel"], directory / "log", env=clean_environment(), cwd=directory
        )

    def client(self) -> redis.Redis:
        """A new client; the caller closes it."""
        return redis.Redis(port=self.port, password=SENTINEL_PASSWORD, decode_responses=True)


class SentinelSet:
    """:meth:`fail_over` has the Sentinels make the replica the primary, as an operator would."""

    def __init__(self, directory: Path, sentinels: int = 2) -> None:
        self.servers = [GuardedServer(directory / name) for name in ("a", "b")]
        quorum = sentinels // 2 + 1
        self.sentinels = [SentinelProcess(directory / f"s{n}", self.servers[0], quorum) for n in range(sentinels)]

    @property
    def addresses(self) -> list[str]:
        """``host:port`` of each Sentinel."""
        return [f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels]

    def start(self) -> SentinelSet:
        """Start all, and wait until every Sentinel knows the replica and the other Sentinels."""
        primary, replica = self.servers
        primary.start()
        replica.start()
        with replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", _SOON_S, "the replica to copy")
        for sentinel in self.sentinels:
            sentinel.process.start()
        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: self._ready(sentinel), _SOON_S, "a Sentinel to know all")
        return self

    def primary(self) -> RedisServer:
        """Which server is the primary now, by what the servers say."""
        for server in self.servers:
            with server.client() as client, contextlib.suppress(redis.ConnectionError):
                if client.info("replication")["role"] == "master":
                    return server
        raise AssertionError("no server is the primary")

    def fail_over(self) -> None:
        """``SENTINEL FAILOVER``, and wait until the Sentinels name the other server."""
        before = self._named(self.sentinels[0])
        with self.sentinels[0].client() as client:
            assert client.execute_command("SENTINEL", "FAILOVER", MASTER)
        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: self._named(sentinel) != before, _SOON_S, "the failover")

    def kill(self) -> None:
        """End everything."""
        for sentinel in self.sentinels:
            sentinel.process.kill()
        for server in self.servers:
            server.kill()

    def _named(self, sentinel: SentinelProcess) -> int:
        with sentinel.client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])

    def _ready(self, sentinel: SentinelProcess) -> bool:
        assert sentinel.process.alive, sentinel.process.output()
        try:
            with sentinel.client() as client:
                seen = client.sentinel_master(MASTER)
                replicas = client.sentinel_slaves(MASTER)
        except redis.ConnectionError:
            return False
        others = seen["num-other-sentinels"] == len(self.sentinels) - 1
        linked = [each for each in replicas if each["master-link-status"] == "ok" and not each["is_sdown"]]
        return others and len(linked) == 1
