"""End-to-end suites run on pytest-celery's nodes; here each node is a local process."""

from __future__ import annotations

# The order matters: the second import replaces the fixtures of the first that would ask for a container engine.
from pytest_celery import *  # noqa: F403  isort: skip
from tests.support.process_nodes import *  # noqa: F403  isort: skip

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import STANDARD, Cluster, current
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="package", params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for the clusters of these tests, each kind in turn. No test may kill it."""
    directory = tmp_path_factory.mktemp(f"cluster-{request.param}")
    if request.param == "redis":
        redis = RedisServer(directory).start()
        yield redis.url.replace("/0", "/1")
        redis.kill()
        return
    rabbitmq = RabbitMQServer(directory)
    try:
        yield rabbitmq.start().add_vhost("cluster")
    finally:
        rabbitmq.close()


@pytest.fixture(scope="package")
def cluster_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Result backend and ledger of the clusters of these tests. No test may kill it."""
    server = RedisServer(tmp_path_factory.mktemp("cluster-backend")).start()
    yield server
    server.kill()


@pytest.fixture(scope="package")
def shared_cluster(
    broker_url: str, cluster_backend: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two simulated GPUs and a CPU worker, with two prefork slots each, once per kind of broker."""
    shared = Cluster(broker_url, cluster_backend, tmp_path_factory.mktemp("workers"))
    try:
        shared.start(*STANDARD)
        shared.until_they_listen()
        yield shared
    finally:
        shared.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster for one test, which has to leave it empty."""
    with current(shared_cluster):
        yield shared_cluster
        shared_cluster.settle()


@pytest.fixture
def new_cluster(broker_url: str, cluster_backend: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make a cluster for this test alone, with no worker yet: ``new_cluster(config={…}, host={…})``."""
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        made.append(Cluster(broker_url, cluster_backend, tmp_path / f"workers{len(made)}", **options))
        made[-1].app.set_current()
        return made[-1]

    yield make
    for each in made:
        each.close()
