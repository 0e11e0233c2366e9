"""``rediss://``: servers that speak nothing but TLS, one that asks for certificates, and a wrong authority."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_allocator.errors import LedgerUnavailable
from celery_allocator.ledger import connect
from celery_allocator.ledger.servers import describe, open_client
from celery_allocator.model import Requirements
from celery_allocator.settings import Settings
from tests.security.certificates import Authority
from tests.security.environment import environment, produce
from tests.security.tls_server import TlsServer
from tests.support.workers import WorkerFleet


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    server = TlsServer(tmp_path_factory.mktemp("tls"), authority)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def asking_server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    server = TlsServer(tmp_path_factory.mktemp("mtls"), authority, ask_clients=True)
    try:
        yield server.start()
    finally:
        server.kill()


def use(url: str, pool: str) -> str:
    """Write and read; returns where the ledger says it is."""
    ledger = connect(Settings(backend_url=url, pool=pool))
    with ledger.client:
        ledger.submit("a1", "t1", "name", Requirements(cpu_cores=1))
        assert ledger.snapshot().waiting == 1
        assert ledger.run_id
        return ledger.url


def fails(url: str, pool: str, words: str) -> None:
    ledger = connect(Settings(backend_url=url, pool=pool))
    with ledger.client, pytest.raises(LedgerUnavailable, match=words):
        ledger.snapshot()


def test_a_ledger_over_tls(server: TlsServer, pool: str) -> None:
    assert use(server.url(), pool) == f"rediss://127.0.0.1:{server.port}/0"


def test_a_server_that_asks_for_the_clients_certificate(asking_server: TlsServer, pool: str) -> None:
    certificate, key = asking_server.authority.sign("client")
    use(asking_server.url(ssl_certfile=certificate, ssl_keyfile=key), pool)
    fails(asking_server.url(), pool, "cannot be reached")


def test_a_certificate_of_another_authority(server: TlsServer, pool: str, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "other")
    fails(server.url(ssl_ca_certs=other.certificate), pool, "(?i)certificate verify failed")


def test_a_name_that_the_certificate_does_not_have(server: TlsServer, pool: str) -> None:
    fails(server.url().replace("127.0.0.1", "127.0.0.2"), pool, "(?i)certificate verify failed: IP address mismatch")


def test_plain_text_to_a_tls_port_is_told(server: TlsServer, pool: str) -> None:
    fails(f"redis://127.0.0.1:{server.port}/0", pool, "cannot be reached")


def test_celerys_spelling_and_celerys_own_setting(server: TlsServer) -> None:
    use_ssl = {"ssl_ca_certs": str(server.authority.certificate), "ssl_cert_reqs": "required"}
    for url, options in (
        (server.url(ssl_cert_reqs="CERT_REQUIRED"), None),
        (f"rediss://127.0.0.1:{server.port}/0", use_ssl),
        (f"redis://127.0.0.1:{server.port}/0", use_ssl),
    ):
        with open_client(url, use_ssl=options) as client:
            assert client.ping()
            assert describe(client) == f"rediss://127.0.0.1:{server.port}/0"


def test_worker_and_producer_where_broker_results_and_ledger_are_one_server(
    server: TlsServer, workers: WorkerFleet, pool: str
) -> None:
    """The ledger's address is the broker's: nothing is configured for it."""
    ssl = {"ssl_ca_certs": str(server.authority.certificate), "ssl_cert_reqs": "required"}
    url = f"rediss://127.0.0.1:{server.port}/0"
    env = environment(pool, broker=url, backend=url, broker_use_ssl=ssl, redis_backend_use_ssl=ssl)
    workers.start("tests.support.allocator_app", "--gpu", "0", "--concurrency", "1", env=env)
    assert produce(env, workers) == {"sum": 3, "revoked": True}
