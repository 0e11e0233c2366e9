"""pytest-celery's nodes on local processes: its API (``celery_setup``, ``celery_worker.kill()``, ``assert_log_exists``)
without a container engine.

Only the fixtures that make *containers* are replaced here, and the one that makes the producer's application. The tests
speak to the nodes alone, so that leaving this module out of ``tests/acceptance/conftest.py``, and giving a
``default_worker_container`` whose image holds this project, runs them on containers.

A test chooses its worker with ``worker_spec`` (or several with ``worker_specs``), by overriding the fixture or by
``@pytest.mark.parametrize("worker_spec", [WorkerSpec(…)], indirect=True)``.
"""

from __future__ import annotations

import os
import shlex
import signal as signals
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pytest
from celery import Celery
from celery.contrib.testing.app import setup_default_app
from pytest_celery import (
    CELERY_RABBITMQ_BROKER,
    CELERY_REDIS_BROKER,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RabbitMQContainer,
    RedisContainer,
)

from tests.support.processes import ROOT, OwnedProcess, clean_environment
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer

__all__ = [
    "WorkerSpec",
    "celery_broker",
    "celery_setup_app",
    "celery_worker_cluster",
    "default_rabbitmq_broker",
    "default_redis_backend",
    "default_redis_broker",
    "default_worker_container",
    "default_worker_container_cls",
    "producer_config",
    "start_worker_node",
    "worker_spec",
    "worker_specs",
]


@dataclass(frozen=True)
class WorkerSpec:
    """One worker: its application module (with ``app`` and ``make_app(**config)``), options, environment and name.

    ``queues`` is what ``-Q`` gets; ``None`` leaves the choice to the application. ``before`` stands before the whole
    command: what starts it on another host, keeping its pid.
    """

    module: str = "tests.support.plain_app"
    args: tuple[str, ...] = ("--concurrency", "2")
    env: Mapping[str, str] = field(default_factory=dict)
    name: str = "worker"
    queues: str | None = None
    before: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The command line, the same on a process and in a container; ``%h`` is the node's host name."""
        queues = ["-Q", self.queues] if self.queues else []
        head = ["celery", "-A", self.module, "worker", "--loglevel=INFO", "-n", f"{self.name}@%h"]
        return [*head, *queues, *self.args]


class Service(Protocol):
    """What a node stands on: a process, and how it comes back."""

    process: OwnedProcess

    def restart(self) -> None: ...


class LocalContainer:
    """What pytest-celery asks of a container, answered by a process on this host."""

    def __init__(self, service: Service, name: str, identity: str, port: int | None = None) -> None:
        self.service = service
        self.name = name
        self.id = identity
        # The port inside is the port outside, so that "is it listening" looks for the right one.
        ports = {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]} if port else {}
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": "127.0.0.1", "Env": [f"{k}={v}" for k, v in service.process.env.items()]},
            "NetworkSettings": {"Networks": {"host": {"IPAddress": "127.0.0.1"}}, "Ports": ports},
            "HostConfig": {"PortBindings": ports},
        }
        self.status = "created"
        self.reload()

    def reload(self) -> None:
        """Look at the process again."""
        self.status = "running" if self.service.process.alive else "exited"

    def logs(self) -> bytes:
        """Everything it wrote, over all starts."""
        return self.service.process.output().encode()

    def kill(self, signal: str | int | None = None) -> None:
        """Signal the main process; SIGKILL takes the whole group, as it takes a whole container."""
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal or signals.SIGKILL)
        if number == signals.SIGKILL:
            self.service.process.kill()
        else:
            self.service.process.send(number)

    def restart(self, timeout: float = 10) -> None:
        """Stop it (SIGTERM, at the deadline SIGKILL) and start it again."""
        if self.service.process.alive:
            self.service.process.stop(timeout=timeout)
        self.service.restart()
        self.reload()

    def exec_run(self, command: str) -> tuple[int, bytes]:
        """Run a command on this host, in the node's environment."""
        done = subprocess.run(
            shlex.split(command), env=self.service.process.env, capture_output=True, timeout=30, check=False
        )
        return done.returncode, done.stdout + done.stderr


def _identity() -> str:
    return uuid.uuid4().hex * 2


# --- brokers and result backends


class ProcessRedis(RedisContainer):
    """A Redis of one test."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(LocalContainer(server, server.directory.name, _identity(), server.port))
        self.server = server

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def host_url(self) -> str:
        return self.server.url

    def teardown(self) -> None:
        self.server.kill()


class ProcessRabbitMQ(RabbitMQContainer):
    """The session's RabbitMQ (it takes seconds to start) with a virtual host of one test."""

    def __init__(self, server: RabbitMQServer, url: str) -> None:
        super().__init__(LocalContainer(server, server.node, _identity(), server.port))
        self.server = server
        self._url = url

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def vhost(self) -> str:
        return self._url.rsplit("/", 1)[1]

    @property
    def url(self) -> str:
        return self._url

    @property
    def host_url(self) -> str:
        return self._url


@pytest.fixture
def default_redis_broker(tmp_path: Path) -> Iterator[ProcessRedis]:
    """A Redis of this test alone, as broker."""
    node = ProcessRedis(RedisServer(tmp_path / "broker").start())
    yield node
    node.teardown()


@pytest.fixture
def default_redis_backend(tmp_path: Path) -> Iterator[ProcessRedis]:
    """A Redis of this test alone, as result backend."""
    node = ProcessRedis(RedisServer(tmp_path / "backend").start())
    yield node
    node.teardown()


@pytest.fixture
def default_rabbitmq_broker(rabbitmq_server: RabbitMQServer, rabbitmq_url: str) -> ProcessRabbitMQ:
    """The session's RabbitMQ, as broker."""
    return ProcessRabbitMQ(rabbitmq_server, rabbitmq_url)


@pytest.fixture(params=[CELERY_REDIS_BROKER, pytest.param(CELERY_RABBITMQ_BROKER, marks=pytest.mark.rabbitmq)])
def celery_broker(request: pytest.FixtureRequest) -> Iterator[CeleryTestBroker]:
    """Each broker in turn, in a fixed order."""
    broker: CeleryTestBroker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


# --- workers


class _WorkerService:
    def __init__(self, before: tuple[str, ...], command: list[str], env: Mapping[str, str], log: Path) -> None:
        self.process = OwnedProcess([*before, sys.executable, "-m", *command], log, env=env)

    def restart(self) -> None:
        self.process.start()
        try:
            self.process.wait_for_output(" ready.", 60)
        except BaseException:
            self.process.kill()
            raise


class ProcessWorker(CeleryWorkerContainer):
    """A Celery worker of one test."""

    def __init__(self, spec: WorkerSpec, env: Mapping[str, str], directory: Path) -> None:
        self.spec = spec
        identity = _identity()
        command = [word.replace("%h", identity[:12]) for word in spec.command()]
        service = _WorkerService(spec.before, command, env, directory / f"{spec.name}.log")
        service.restart()
        super().__init__(LocalContainer(service, spec.name, identity))
        self.process = service.process

    def worker_name(self) -> str:
        return self.spec.name

    def worker_queue(self) -> str:
        return self.spec.queues or "celery"

    def log_level(self) -> str:
        return "INFO"

    def teardown(self) -> None:
        self.process.kill()


@pytest.fixture
def worker_spec(request: pytest.FixtureRequest) -> WorkerSpec:
    """The worker of this test."""
    return getattr(request, "param", WorkerSpec())


@pytest.fixture
def worker_specs(request: pytest.FixtureRequest, worker_spec: WorkerSpec) -> tuple[WorkerSpec, ...]:
    """All workers of this test; the first is ``celery_worker``."""
    return getattr(request, "param", (worker_spec,))


@pytest.fixture
def producer_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Configuration of the producer's application, beside the nodes' URLs."""
    return getattr(request, "param", {})


@pytest.fixture
def celery_setup_app(
    worker_specs: tuple[WorkerSpec, ...], celery_setup_config: dict[str, Any], producer_config: dict[str, Any]
) -> Iterator[Celery]:
    """The producer: a fresh application of the worker's module, current while the test runs."""
    app: Celery = import_module(worker_specs[0].module).make_app(**celery_setup_config, **producer_config)
    with setup_default_app(app):
        app.set_current()
        yield app
    app.close()


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    """Class of the worker nodes."""
    return ProcessWorker


@pytest.fixture
def start_worker_node(
    celery_worker_cluster_config: dict[str, Any], tmp_path: Path
) -> Iterator[Callable[[WorkerSpec], ProcessWorker]]:
    """Start a worker from its spec on this test's broker and backend; all are killed at the end."""
    started: list[ProcessWorker] = []

    def start(spec: WorkerSpec) -> ProcessWorker:
        env = CeleryWorkerContainer.initial_env(celery_worker_cluster_config, initial=dict(spec.env))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        node = ProcessWorker(spec, clean_environment({**env, "PYTHONPATH": path}), tmp_path / "workers")
        started.append(node)
        return node

    yield start
    for node in started:
        node.teardown()


@pytest.fixture
def default_worker_container(
    worker_specs: tuple[WorkerSpec, ...], start_worker_node: Callable[[WorkerSpec], ProcessWorker]
) -> ProcessWorker:
    """The first worker."""
    return start_worker_node(worker_specs[0])


@pytest.fixture
def celery_worker_cluster(
    celery_worker: CeleryTestWorker,
    worker_specs: tuple[WorkerSpec, ...],
    start_worker_node: Callable[[WorkerSpec], ProcessWorker],
    celery_setup_app: Celery,
) -> Iterator[CeleryWorkerCluster]:
    """All workers of this test."""
    others = [CeleryTestWorker(start_worker_node(spec), app=celery_setup_app) for spec in worker_specs[1:]]
    cluster = CeleryWorkerCluster(celery_worker, *others)
    yield cluster
    cluster.teardown()
