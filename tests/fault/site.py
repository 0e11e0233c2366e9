"""A site: one pool with servers and workers of its own, which serves many rounds and mends itself in between."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from celery_allocator.errors import AllocatorError
from tests.fault.app import RECORDS
from tests.fault.history import History
from tests.fault.registry import Layout
from tests.support.cluster import HOST, Cluster
from tests.support.process_nodes import WorkerSpec
from tests.support.processes import OwnedProcess
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

MODULE = "tests.fault.app"
#: Seconds between looks at what the ledger holds.
_LOOK_S = 0.05
_MEND_S = 60.0


class Site:
    """Servers, workers, their history, and a thread that sees when the ledger has a grant's slot back.

    Subclass it to put something between workers and servers: override ``start_servers``, ``worker_env`` and ``mend``.
    """

    def __init__(self, layout: Layout, directory: Path) -> None:
        self.layout = layout
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.backend = RedisServer(directory / "ledger")
        self.broker: RedisServer | RabbitMQServer | None = None
        self.history = History(directory / "records.jsonl")
        #: When the ledger no longer held a grant (allocation id, token), by the monotonic clock.
        self.freed: dict[tuple[str, int], float] = {}
        #: Held and waiting, as last seen.
        self.busy = 0
        self._stop = threading.Event()
        self._observer = threading.Thread(target=self._observe, name="fault-observer", daemon=True)
        self.cluster: Cluster

    # --- what a subclass may change

    def start_servers(self) -> str:
        """Start ledger and broker; returns the broker's URL."""
        self.backend.start()
        if self.layout.broker == "same":
            return self.backend.url
        if self.layout.broker == "redis":
            self.broker = RedisServer(self.directory / "broker").start()
            return self.broker.url
        self.broker = RabbitMQServer(self.directory / "broker").start()
        return self.broker.add_vhost("site")

    @property
    def ledger_url(self) -> str:
        """Where producer and workers find the ledger; empty if it is on the server of the results."""
        return ""

    def worker_env(self, name: str) -> Mapping[str, str]:
        """More environment for one worker, for instance a proxy's URL."""
        return {}

    def mend(self) -> None:
        """Bring back what a round left down: servers and workers; wait until the ledger knows every worker."""
        self.backend.ensure()
        if self.broker is not None:
            self.broker.ensure()

        def whole() -> bool:
            self.restart(*(name for name in self.cluster.workers if not self.process(name).alive))
            return self.complete()

        wait_until(whole, _MEND_S, lambda: f"every worker to be registered:\n{self.cluster.logs()}", interval=0.1)

    # ---

    def open(self) -> Site:
        """Start everything."""
        layout = self.layout
        host = {
            **HOST,
            "ALLOCATOR_CPU_CORES": "16",
            "ALLOCATOR_LEASE_S": str(layout.lease_s),
            "ALLOCATOR_START_DEADLINE_S": str(layout.start_deadline_s),
            "ALLOCATOR_TICK_S": str(layout.tick_s),
            RECORDS: str(self.history.path),
            **dict(layout.env),
        }
        # Producers must agree with workers on these, as in any installation.
        shared = {"allocator_start_deadline_s": layout.start_deadline_s, "allocator_lease_s": layout.lease_s}
        settings = {name: dict(value) if isinstance(value, tuple) else value for name, value in layout.config}
        # As configs/celeryconfig.py recommends: the results' server is one of those that come and go here.
        celery = {"broker_connection_retry_on_startup": True, "result_backend_always_retry": True}
        config = {**shared, **celery, **settings}
        try:
            url = self.start_servers()
            self.cluster = Cluster(
                url,
                self.backend,
                self.directory / "workers",
                host=host,
                config=config,
                module=MODULE,
                ledger_url=self.ledger_url,
            )
            self.cluster.start(*(self.spec(*worker) for worker in layout.workers))
            wait_until(self.complete, _MEND_S, lambda: f"every worker to be registered:\n{self.cluster.logs()}")
        except BaseException:
            self.close()
            raise
        self._observer.start()
        return self

    def spec(self, name: str, gpu: str, slots: int) -> WorkerSpec:
        """One worker."""
        args = ("--gpu", gpu, "--concurrency", str(slots), *self.layout.options)
        return WorkerSpec(module=MODULE, name=name, args=args, env=self.worker_env(name))

    def process(self, name: str) -> OwnedProcess:
        """The process of a worker."""
        process: OwnedProcess = self.cluster.workers[name].container.process
        return process

    def group(self, name: str) -> list[int]:
        """Pids of a worker: its main process first, then its children."""
        main = psutil.Process(self.process(name).pid)
        return [main.pid, *(child.pid for child in main.children(recursive=True))]

    def worker_of(self, device: str) -> str:
        """Name of the worker that serves a device (``gpu_0``)."""
        found = next(d.worker for d in self.cluster.ledger.snapshot().devices if d.device_id == device)
        assert found, f"nobody serves {device}"
        return found.split("@")[0]

    def restart(self, *names: str) -> None:
        """Start these workers again, all at the same time, under their names."""
        containers = [self.cluster.workers[name].container for name in names]
        # Not by the wrapper's own restart, which prints.
        threads = [threading.Thread(target=container._container.restart) for container in containers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def complete(self) -> bool:
        """Whether every worker runs, and serves its device."""
        try:
            served = {worker.pid for worker in self.cluster.ledger.snapshot().workers}
        except AllocatorError:
            return False
        processes = [self.process(name) for name in self.cluster.workers]
        return all(process.alive and process.pid in served for process in processes)

    def close(self) -> None:
        """Kill everything."""
        self._stop.set()
        if self._observer.ident:
            self._observer.join(5)
        self.history.close()
        with contextlib.suppress(AttributeError):
            self.cluster.close()
        if isinstance(self.broker, RabbitMQServer):
            self.broker.close()
        elif self.broker is not None:
            self.broker.kill()
        self.backend.kill()

    def _observe(self) -> None:
        ledger = self.cluster.ledger
        held: set[tuple[str, int]] = set()
        while not self._stop.wait(_LOOK_S):
            try:
                now_held = {(a.allocation_id, a.token) for a in ledger.held()}
                self.busy = len(now_held) + ledger.snapshot().waiting
            except AllocatorError:
                continue
            now = time.monotonic()
            for grant in held - now_held:
                self.freed[grant] = now
            for grant in now_held:
                # A ledger that was restored may hold again what seemed free.
                self.freed.pop(grant, None)
            held = now_held
