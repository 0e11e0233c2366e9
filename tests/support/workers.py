"""Real Celery workers as processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.processes import ROOT, OwnedProcess, clean_environment
from tests.support.waiting import wait_until

#: What a worker logs (level INFO) once it consumes.
READY = " ready."


class WorkerProcess(OwnedProcess):
    """``celery -A <module> worker …`` in its own process group.

    ``ready`` replaces the default test of readiness (the log says so), for instance by "the ledger knows the worker".
    """

    def __init__(
        self,
        module: str,
        *args: str,
        directory: Path,
        name: str = "worker",
        env: Mapping[str, str] | None = None,
        ready: Callable[[WorkerProcess], object] | None = None,
    ) -> None:
        self.name = name
        self._ready = ready
        argv = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", f"{name}@test", "--loglevel=INFO", *args]
        environment = clean_environment({"PYTHONPATH": str(ROOT), **(env or {})})
        super().__init__(argv, directory / f"{name}.log", env=environment)

    def start(self) -> WorkerProcess:
        """Start it without waiting."""
        super().start()
        return self

    def wait_ready(self, timeout: float = 60.0) -> WorkerProcess:
        """Wait until it is ready; fails at once when it ends before."""
        if self._ready is None:
            self.wait_for_output(READY, timeout)
            return self
        ready = self._ready

        def is_ready() -> object:
            assert self.alive, f"worker {self.name} ended with {self.returncode}:\n{self.output()[-4000:]}"
            return ready(self)

        wait_until(is_ready, timeout, lambda: f"worker {self.name} to be ready:\n{self.output()[-4000:]}")
        return self

    def restart(self, timeout: float = 60.0) -> WorkerProcess:
        """Start it again (it is stopped first if it runs) and wait until it is ready."""
        if self.alive:
            self.stop()
        return self.start().wait_ready(timeout)


class WorkerFleet:
    """The workers of one test: started together or one by one, all gone at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.workers: list[WorkerProcess] = []

    def start(
        self,
        module: str,
        *args: str,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        ready: Callable[[WorkerProcess], object] | None = None,
        wait: bool = True,
    ) -> WorkerProcess:
        """Start one worker, by default waiting until it is ready."""
        name = name or f"worker{len(self.workers)}"
        worker = WorkerProcess(module, *args, directory=self.directory, name=name, env=env, ready=ready)
        self.workers.append(worker)
        worker.start()
        return worker.wait_ready() if wait else worker

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait for all that were started with ``wait=False``."""
        for worker in self.workers:
            worker.wait_ready(timeout)

    def output(self) -> str:
        """The end of every worker's log, for messages."""
        return "\n".join(f"--- {worker.name}\n{worker.output()[-3000:]}" for worker in self.workers)

    def close(self) -> None:
        """Kill every group."""
        for worker in self.workers:
            worker.kill()
