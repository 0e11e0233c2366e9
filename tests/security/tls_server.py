"""Servers that speak TLS. The wheel's server cannot, so this takes the one on PATH."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import redis

from tests.security.certificates import Authority
from tests.support.availability import missing
from tests.support.processes import OwnedProcess, clean_environment, free_port
from tests.support.waiting import wait_until


class TlsServer:
    """One Redis on a TLS port of 127.0.0.1 (and .2, which its certificate does not name) and no other.

    It asks clients for a certificate if told to.
    """

    def __init__(self, directory: Path, authority: Authority, *, ask_clients: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        binary = shutil.which("redis-server") or missing("redis-server with TLS", "apt-get install redis-server")
        self.authority = authority
        self.port = free_port()
        certificate, key = authority.sign("server")
        argv = [binary, "--port", "0", "--tls-port", str(self.port), "--bind", "127.0.0.1", "127.0.0.2"]
        argv += ["--dir", str(directory)]
        argv += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
        argv += ["--tls-ca-cert-file", str(authority.certificate), "--tls-auth-clients", "yes" if ask_clients else "no"]
        argv += ["--save", "", "--appendonly", "yes", "--daemonize", "no"]
        self.process = OwnedProcess(argv, directory / "log", env=clean_environment(), cwd=directory)

    def url(self, **options: object) -> str:
        """``rediss://`` with what a client needs to trust it; ``options`` are added to the query."""
        query = {"ssl_ca_certs": self.authority.certificate, **options}
        return f"rediss://127.0.0.1:{self.port}/0?" + "&".join(f"{name}={value}" for name, value in query.items())

    def start(self) -> TlsServer:
        """Start it and wait until it answers."""
        self.process.start()
        certificate, key = self.authority.sign("probe")
        url = self.url(ssl_certfile=certificate, ssl_keyfile=key)

        def answers() -> bool:
            assert self.process.alive, f"the server ended:\n{self.process.output()[-4000:]}"
            with contextlib.suppress(redis.ConnectionError), redis.Redis.from_url(url) as client:
                return bool(client.ping())
            return False

        wait_until(answers, 30, lambda: f"the server to answer:\n{self.process.output()[-4000:]}")
        return self

    def kill(self) -> None:
        """End it."""
        self.process.kill()
