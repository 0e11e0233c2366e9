"""Servers and workers for every test, all started by the session that uses them; no other server is touched."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from xdist.remote import Producer

from celery_allocator.allocating.session import use_default
from tests.support.postgres_server import PostgresServer
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.scheduling import LongestFirst
from tests.support.workers import WorkerFleet

# Before any app reads them: a developer's own settings must not steer the tests.
for _name in [name for name in os.environ if name.startswith(("ALLOCATOR_", "CELERY_"))]:
    del os.environ[_name]

# A shell that runs the tests in the background has them ignore Ctrl-C, and so all that they start: a Ctrl-C that is
# tested would do nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The demo's network is small: several threads would spend three times the work on waiting for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# How long an example takes says something about the machine and its other work, and nothing about what is tested.
hypothesis_settings.register_profile(
    "any machine",
    hypothesis_settings.default,
    deadline=None,
    suppress_health_check={*hypothesis_settings.default.suppress_health_check, HealthCheck.too_slow},
)
hypothesis_settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LongestFirst | None:
    """Of ``--dist loadfile``: files in portions, the longest first."""
    return LongestFirst(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def _private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the embedded server of the user who runs the tests out of reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


#: Servers of this session that a test may have killed.
_running: list[RedisServer | RabbitMQServer] = []


@pytest.fixture(autouse=True)
def _environments_default() -> Iterator[None]:
    """An app that a test installed lends the function form its ledger: for that test alone."""
    yield
    use_default(None)


@pytest.fixture(autouse=True)
def _servers_up() -> None:
    """Bring back a server that an earlier test left down."""
    for server in _running:
        server.ensure()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's Redis. ``TEST_LEDGER=redis`` takes redis-server from PATH; a test may kill or restart it."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    _running.append(server)
    yield server
    _running.remove(server)
    server.kill()


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """The session's RabbitMQ; a test may kill or restart it."""
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        _running.append(server.start())
        yield server
        _running.remove(server)
    finally:
        server.close()


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitMQServer) -> Iterator[str]:
    """URL of a virtual host of this test alone."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield rabbitmq_server.add_vhost(name)
    if rabbitmq_server.process.alive:
        rabbitmq_server.delete_vhost(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL."""
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def pool() -> str:
    """A pool name that no other test uses: one pool is one ledger, so nothing has to be flushed."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def ledger_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the session's Redis; use it with ``pool``."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[WorkerFleet]:
    """Celery workers of this test: ``workers.start(module, "-c", "2", env={…})``."""
    fleet = WorkerFleet(tmp_path / "workers")
    yield fleet
    fleet.close()
