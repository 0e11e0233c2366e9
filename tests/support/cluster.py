"""A broker, a result backend, a ledger and workers with simulated devices, for as many tests as like to share them.

Made of pytest-celery's nodes (see ``process_nodes``). A test that shares a cluster leaves its ledger empty;
``Cluster.settle`` waits for that, and fails the test that did not.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.contrib.testing.app import setup_default_app
from pytest_celery import CeleryTestWorker

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, DeviceState
from tests.support.ledger_checks import assert_empty
from tests.support.process_nodes import ProcessWorker, WorkerSpec
from tests.support.processes import ROOT, clean_environment
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

MODULE = "tests.support.allocator_app"
#: Name of the one simulated host.
NODE = "host1"
#: Seconds within which anything that should happen has happened.
SOON_S = 45.0
#: Cores, RAM and devices of the simulated host: more than the machine has, so that slots and memory are what is scarce.
HOST = {
    "ALLOCATOR_NODE": NODE,
    "ALLOCATOR_DEVICES": "sim:2x8192",
    "ALLOCATOR_CPU_CORES": "8",
    "ALLOCATOR_RAM_MB": "16384",
}


def worker_spec(name: str, gpu: str, *args: str, env: Mapping[str, str] | None = None, **spec: Any) -> WorkerSpec:
    """A worker of the zoo for one device, with two prefork slots unless ``args`` say otherwise."""
    args = args or ("--concurrency", "2")
    return WorkerSpec(module=MODULE, name=name, args=("--gpu", gpu, *args), env=env or {}, **spec)


#: One worker per simulated GPU and one for CPU-only work.
STANDARD = (worker_spec("gpu0", "0"), worker_spec("gpu1", "1"), worker_spec("cpu", "none"))


@dataclass
class Cluster:
    """One pool: its producer ``app``, its ``ledger`` and its workers by name."""

    broker_url: str
    backend: RedisServer
    directory: Path
    pool: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")
    host: Mapping[str, str] = field(default_factory=lambda: dict(HOST))
    #: Settings of producer and workers alike.
    config: Mapping[str, Any] = field(default_factory=dict)
    workers: dict[str, CeleryTestWorker] = field(default_factory=dict)
    #: The producer's application module, with ``make_app(**config)``.
    module: str = MODULE
    #: Where the ledger is, if it is not on the server of the results.
    ledger_url: str = ""

    def __post_init__(self) -> None:
        # Clusters may share a broker: each has its own queue for plain tasks.
        self.config = {"task_default_queue": f"plain-{self.pool}", **self.config}
        self.client: redis.Redis = redis.Redis.from_url(self.backend.url, socket_timeout=2 * SOON_S)
        self._ledger_client = redis.Redis.from_url(self.ledger_url, socket_timeout=SOON_S) if self.ledger_url else None
        self.ledger = Ledger(self._ledger_client or self.client, self.pool)
        self.app = self.make_app()

    def make_app(self, **config: Any) -> Celery:
        """Another producer of this pool."""
        made: Celery = import_module(self.module).make_app(
            broker_url=self.broker_url,
            result_backend=self.backend.url,
            allocator_backend_url=self.ledger_url or self.backend.url,
            allocator_pool=self.pool,
            **{**self.config, **config},
        )
        return made

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of this cluster's workers."""
        urls = {
            "CELERY_BROKER_URL": self.broker_url,
            "CELERY_RESULT_BACKEND": self.backend.url,
            "ALLOCATOR_BACKEND_URL": self.ledger_url or self.backend.url,
            "ALLOCATOR_POOL": self.pool,
            "ZOO_CONFIG": json.dumps(self.config),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        return clean_environment({**urls, **self.host, **(extra or {})})

    def start(self, *specs: WorkerSpec) -> None:
        """Start workers, all at the same time, and wait until they serve."""
        with ThreadPoolExecutor(len(specs)) as threads:
            # Each is known as soon as it runs: should another one fail, it is still killed at the end.
            list(threads.map(self._start, specs))

    def _start(self, spec: WorkerSpec) -> None:
        node = ProcessWorker(spec, self.environment(spec.env), self.directory)
        self.workers[spec.name] = CeleryTestWorker(node, app=self.app)

    def until_they_listen(self) -> None:
        """Wait until every worker hears broadcasts. It is ready before, and by Redis it misses what came earlier."""
        hosts = [worker.hostname() for worker in self.workers.values()]
        ping = self.app.control.ping
        self.until(lambda: len(ping(destination=hosts, timeout=5)) == len(hosts), "every worker to answer a broadcast")

    def close(self) -> None:
        """Kill every worker."""
        for worker in self.workers.values():
            worker.teardown()
        self.workers.clear()
        # Results unsubscribe from the backend when they go: before the backend does.
        gc.collect()
        self.app.close()
        self.client.close()
        if self._ledger_client is not None:
            self._ledger_client.close()

    # --- what tests ask

    def key(self) -> str:
        """A fresh key of the result backend."""
        return f"key-{uuid.uuid4().hex[:12]}"

    def let_go(self, *keys: str) -> None:
        """Tell what holds on ``keys`` to end."""
        for key in keys:
            self.client.rpush(key, "go")

    def held_in(self, key: str) -> int:
        """Wait until a ``zoo.hold`` runs; returns its pid."""
        found = self.client.blpop([f"{key}:in"], timeout=SOON_S)
        assert found, f"nothing ran with {key}: {self.ledger.snapshot()}\n{self.logs()}"
        return int(found[1])

    @contextlib.contextmanager
    def full(self) -> Iterator[list[str]]:
        """Fill every slot and all memory of every GPU while the body runs; yields the keys held on, GPU by GPU."""
        keys = []
        for device in self.ledger.snapshot().devices:
            if device.worker and device.is_gpu:
                for slot in range(device.slots):
                    keys.append(self.key())
                    # The last one takes what the others left, so that the next task is placed on the next GPU.
                    memory = device.memory_mb - 512 * (device.slots - 1) if slot == device.slots - 1 else 512
                    need = {"gpu_memory_mb": memory, "cpu_cores": 0, "ram_mb": 1}
                    self.app.send_task("zoo.hold", (keys[-1],), resources=need)
        try:
            for key in keys:
                self.held_in(key)
            yield keys
        finally:
            self.let_go(*keys)

    def notes(self, key: str) -> list[Any]:
        """What tasks noted under ``key`` so far."""
        return [json.loads(text) for text in self.client.lrange(key, 0, -1)]

    def counter(self, key: str) -> int:
        """What tasks counted under ``key`` so far."""
        return int(self.client.get(key) or 0)

    def only(self, task_id: str) -> Allocation:
        """The one live allocation of a task."""
        (allocation,) = self.ledger.find(task_id)
        return allocation

    def device(self, name: str) -> DeviceState:
        """A device of the host."""
        return next(device for device in self.ledger.snapshot().devices if device.device_id == name)

    def until(self, predicate: Callable[[], Any], what: str, timeout: float = SOON_S) -> Any:
        """Wait for a condition, and show the pool when it does not come."""
        return wait_until(predicate, timeout, lambda: f"{what}; the pool is\n{self.describe()}\n{self.logs()}")

    def idle(self) -> bool:
        """Whether nothing is held, waits or is delayed, and no ended task lacks its result."""
        state = self.ledger.snapshot()
        live = state.delayed or state.waiting or state.on_hold or state.granted or state.running
        return not (live or self._unsettled())

    def settle(self, timeout: float = SOON_S) -> None:
        """Wait until the pool is idle, and check that nothing of anything is left behind."""
        self.until(self.idle, "the pool to be idle", timeout)
        assert_empty(self.ledger)

    def _unsettled(self) -> int:
        return int((self._ledger_client or self.client).exists(f"{{allocator:{self.pool}}}:obits"))

    def describe(self) -> str:
        """Every live allocation, one per line."""
        some = (*self.ledger.held(), *self.ledger.queue(), *self.ledger.delayed())
        return "\n".join(str(allocation) for allocation in some) or "empty"

    def logs(self) -> str:
        """The end of every worker's log."""
        return "\n".join(f"--- {name}\n{worker.logs()[-3000:]}" for name, worker in self.workers.items())


@contextlib.contextmanager
def current(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster's producer is the current app in the body, as ``AsyncResult`` and signatures expect."""
    with setup_default_app(cluster.app):
        cluster.app.set_current()
        yield cluster
