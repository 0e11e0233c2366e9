"""Servers, workers and simulated devices of ``overhead.py``, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from celery_allocator.embedded import EmbeddedServer
from celery_allocator.ledger import Ledger, Mailbox
from celery_allocator.model import DeviceInventory, NodeInventory
from celery_allocator.plugin.envelope import head

HERE = Path(__file__).resolve().parent
GPU_MB = 24576
_DEADLINE_S = 60.0
_LEASE_S = 3600.0


@contextlib.contextmanager
def server(directory: Path) -> Iterator[EmbeddedServer]:
    """A server of this run's own: broker, result backend and ledger of all sides. Stopped at the end."""
    running = EmbeddedServer(directory / "server")
    running.ensure()
    try:
        yield running
    finally:
        running.stop()


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = _DEADLINE_S) -> None:
    """Poll until ``condition`` holds; ``TimeoutError`` after ``deadline_s`` seconds."""
    ends = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.005)


class Worker:
    """One Celery worker as a process group, its output in a file."""

    def __init__(self, side: str, name: str, directory: Path, url: str, *args: str, **env: str) -> None:
        self.log = directory / f"{side}.{name}.log"
        command = [sys.executable, "-m", "celery", "-A", "overhead_tasks", "worker", "-n", f"{side}.{name}@bench"]
        command += ["--loglevel=WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat", *args]
        own = {"BENCH_SIDE": side, "BENCH_URL": url, "BENCH_RECORDS": str(directory)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=HERE,
                env={**environment(), **own, **env},
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise with the end of its log if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(
                f"{self.log.name}: ended with {self._process.returncode}\n{self.log.read_text()[-3000:]}"
            )

    def stop(self) -> None:
        """SIGTERM; SIGKILL to the group when that is not enough."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(5)


@contextlib.contextmanager
def workers(
    directory: Path, url: str, side: str, gpus: int, slots: int, *args: str, env: Mapping[str, str] | None = None
) -> Iterator[list[Worker]]:
    """``gpus`` workers of ``slots`` slots: one per simulated GPU with the plugin, else all on one ordinary queue."""
    running: list[Worker] = []
    extra = {"ALLOCATOR_DEVICES": f"sim:{gpus}x{GPU_MB}", "ALLOCATOR_CPU_CORES": str(gpus * slots), **(env or {})}
    try:
        for number in range(gpus):
            own = ["--concurrency", str(slots), *args]
            if side != "plain":
                own += ["--gpu", str(number)]
            running.append(Worker(side, f"w{number}", directory, url, *own, **extra))
        yield running
    finally:
        for worker in running:
            worker.stop()


def environment() -> dict[str, str]:
    """This environment without settings of Celery or the allocator, and with the package to measure importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ALLOCATOR_", "CELERY_", "BENCH_"))}
    path = os.pathsep.join(p for p in (str(HERE), str(HERE.parent), kept.get("PYTHONPATH")) if p)
    return {**kept, "PYTHONPATH": path}


def offer(ledger: Ledger, gpus: int, slots: int) -> None:
    """Devices without a worker behind them: grants go to queues that nobody reads."""
    devices = tuple(
        DeviceInventory(
            device_id=f"gpu_{i}", memory_mb=GPU_MB, uuid=f"GPU-bench-{i}", model="simulated", index=i, cpu_affinity=()
        )
        for i in range(gpus)
    )
    node = NodeInventory(node="bench", cpu_cores=tuple(range(64)), ram_mb=65536, devices=devices)
    ledger.register_node(node, _LEASE_S)
    for device in devices:
        queue = f"bench.{ledger.pool}.{device.device_id}"
        ledger.register_worker(
            f"{device.device_id}@bench",
            f"inc-{device.device_id}",
            "bench",
            device.device_id,
            slots=slots,
            queue=queue,
            lease_s=_LEASE_S,
            # As its worker would have it here, where the broker is the ledger's server.
            mailbox=Mailbox(queue, head(queue)),
        )
