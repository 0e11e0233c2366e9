"""A ledger that looks busy, and Flower beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from celery_allocator.ledger import Ledger, connect
from celery_allocator.settings import Settings
from tests.flower import scene
from tests.support.flower_process import FlowerProcess
from tests.support.redis_server import RedisServer

USER, PASSWORD = "ada", "secret-of-ada"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Broker, results and ledger of this module. A test that kills it starts it again."""
    server = RedisServer(tmp_path_factory.mktemp("flower-redis")).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def ledger(server: RedisServer) -> Iterator[Ledger]:
    """The busy ledger."""
    made = connect(Settings(backend_url=server.url))
    scene.busy_day(made)
    with made.client:
        yield made


@pytest.fixture(scope="module")
def environment(server: RedisServer) -> dict[str, str]:
    """What Flower needs to find them."""
    return {
        "CELERY_BROKER_URL": server.url,
        "CELERY_RESULT_BACKEND": server.url,
        "ALLOCATOR_BACKEND_URL": server.url,
    }


@pytest.fixture(scope="module")
def start(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., FlowerProcess]]:
    """Start Flower: ``start("--read_only", command="flower", env={…})``."""
    started: list[FlowerProcess] = []

    def run(*options: str, env: dict[str, str] | None = None, **more: str) -> FlowerProcess:
        folder = tmp_path_factory.mktemp("flower")
        started.append(FlowerProcess(folder, {**environment, **(env or {})}, *options, **more))
        return started[-1].ready()

    yield run
    for flower in started:
        flower.kill()


@pytest.fixture(scope="module")
def flower(ledger: Ledger, start: Callable[..., FlowerProcess]) -> FlowerProcess:
    """One that knows its users."""
    return start(f"--basic_auth={USER}:{PASSWORD}")
