"""The tools that break things break what they say, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support import wrong_clock
from tests.support.network_hosts import NetworkHosts
from tests.support.redis_server import RedisServer
from tests.support.replica import ReplicaPair
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[TcpProxy]:
    """A proxy to the session's Redis."""
    with TcpProxy(("127.0.0.1", redis_server.port)) as made:
        yield made


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[redis.Redis]:
    """A client through the proxy that does not try again."""
    with redis.Redis(port=proxy.port, socket_timeout=10, socket_connect_timeout=10, retry=None) as made:
        assert made.ping()
        yield made


class TestProxy:
    """What passes, and what does not."""

    def test_passes_much_in_both_directions(self, client: redis.Redis, pool: str) -> None:
        """More than one chunk."""
        client.set(pool, b"x" * 3_000_000, ex=60)
        assert len(client.get(pool) or b"") == 3_000_000

    def test_a_cut_holds_everything_and_gives_it_back(self, proxy: TcpProxy, pool: str) -> None:
        """Nothing is closed, nothing answers; what was sent arrives later."""
        with socket.create_connection((proxy.host, proxy.port), 5) as link:
            link.sendall(b"PING\r\n")
            assert link.recv(100) == b"+PONG\r\n"
            proxy.cut()
            link.sendall(b"PING\r\n")
            link.settimeout(0.2)
            with pytest.raises(TimeoutError):
                link.recv(100)
            with socket.create_connection((proxy.host, proxy.port), 5) as late:
                late.settimeout(0.2)
                late.sendall(b"PING\r\n")
                with pytest.raises(TimeoutError):
                    late.recv(100)
                proxy.heal()
                for each in (link, late):
                    each.settimeout(5)
                    assert each.recv(100) == b"+PONG\r\n"

    def test_refusing_closes_what_is_open(self, proxy: TcpProxy, client: redis.Redis) -> None:
        """As a server that is down; and back again on the same port."""
        proxy.refuse()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port), 2)
        proxy.heal()
        assert client.ping()

    def test_latency_is_of_each_direction(self, proxy: TcpProxy, client: redis.Redis) -> None:
        """A round trip takes both."""
        proxy.latency_s = 0.1
        start = time.monotonic()
        assert client.ping()
        assert time.monotonic() - start >= 0.2

    def test_switches_servers(self, proxy: TcpProxy, client: redis.Redis, tmp_path: Path) -> None:
        """Connections to the old one are closed."""
        other = RedisServer(tmp_path / "other").start()
        try:
            before = client.info("server")["run_id"]
            proxy.switch(("127.0.0.1", other.port))
            wait_until(lambda: proxy.connections == 0, 30, "old connections to be closed")
            client.connection_pool.disconnect()
            assert client.info("server")["run_id"] != before
        finally:
            other.kill()


def test_a_replica_that_missed_writes_takes_over(tmp_path: Path) -> None:
    """The clients' address stays; what was written after the cut is gone; the old primary can come back as replica."""
    pair = ReplicaPair(tmp_path)
    try:
        pair.start()
        with redis.Redis.from_url(pair.url) as client:
            client.set("kept", 1)
            wait_until(pair.copied, 30, "the copy")
            pair.stop_copying()
            client.set("missed", 1)
            pair.fail_over()
            assert client.get("kept") == b"1"
            assert client.get("missed") is None
            client.set("new", 1)
            pair.rejoin()
        with pair.replica.client() as old:
            assert old.get("missed") is None
            assert old.get("new") == b"1"
    finally:
        pair.kill()


_ECHO = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]));"
_ECHO += " s.settimeout(float(sys.argv[3])); s.sendall(b'PING\\r\\n'); print(s.recv(100))"


def test_hosts_reach_the_harness_until_their_link_is_cut(redis_server: RedisServer) -> None:
    """One host's link does not touch the other's."""
    with NetworkHosts(2) as hosts, TcpProxy(("127.0.0.1", redis_server.port), host=hosts.gateway) as proxy:

        def ping(number: int, patience_s: float = 10) -> str:
            words = [*hosts.command(number), sys.executable, "-c", _ECHO, proxy.host, str(proxy.port), str(patience_s)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
            return done.stdout + done.stderr

        assert "PONG" in ping(0)
        hosts.cut(0)
        assert "PONG" not in ping(0, 0.5)
        assert "PONG" in ping(1)
        hosts.heal(0)
        assert "PONG" in ping(0)


def test_a_wrong_clock_shifts_the_time_of_day_alone(tmp_path: Path) -> None:
    """For the process and its children; the monotonic clock, waiting and psutil's start times stay right."""
    code = (
        "import datetime, multiprocessing, psutil, threading, time; t, m = time.time(), time.monotonic();"
        " threading.Event().wait(0.01); multiprocessing.get_context('fork').Semaphore(0).acquire(timeout=0.01);"
        " print(t, time.monotonic() - m, psutil.Process().create_time(), datetime.datetime.now().timestamp())"
    )
    for off in (3600, -3600):
        env = wrong_clock.environ(tmp_path, off)
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        now, waited, born, today = map(float, done.stdout.split())
        assert abs(now - started - off) < 60
        assert abs(today - started - off) < 60
        assert waited < 30
        assert abs(born - started) < 60
