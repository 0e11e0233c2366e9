"""A process that keeps a ledger busy until SIGTERM: ``python -m tests.history.load URL POOL NAME``.

It serves a node of its own, and submits, starts, loses and releases tasks there; whatever happens to the server, it
goes on as soon as that answers.
"""

from __future__ import annotations

import random
import sys
import uuid

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.ledger import Beat, Ledger, connect, new_allocation_id
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli.ending import asked_to_end

LEASE_S = 600.0


class Load:
    """One node, its worker and its tasks."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name
        self._incarnation = ""
        self._random = random.Random(name)

    def register(self) -> None:
        """Anew: what it ran before is lost."""
        device = DeviceInventory("gpu_0", 0, f"GPU-{self._name}", "simulated", 10_000)
        self._ledger.register_node(NodeInventory(self._name, tuple(range(8)), 64_000, (device,)), LEASE_S)
        if self._incarnation:
            self._ledger.unregister_worker(f"w-{self._name}", self._incarnation)
        self._incarnation = uuid.uuid4().hex
        self._ledger.register_worker(
            f"w-{self._name}", self._incarnation, self._name, "gpu_0", slots=6, queue=f"q-{self._name}", lease_s=LEASE_S
        )

    def step(self) -> None:
        """Some tasks come and go."""
        if self._ledger.heartbeat(f"w-{self._name}", self._incarnation, LEASE_S) is not Beat.KEPT:
            self.register()
        self._ledger.tick(lock_s=0.2)
        for _ in range(self._random.randint(1, 6)):
            name = new_allocation_id()
            needs = Requirements(self._random.choice([1000, 3000, 9000]), 1, 0, self._random.randint(-2, 2))
            self._ledger.submit(name, f"task-{name}", self._random.choice(["proj.a", "proj.b"]), needs, on_never="wait")
            if self._random.random() < 0.1:
                self._ledger.cancel(name)
        for waiting in self._ledger.queue(10, offset=20):  # no longer line than that
            self._ledger.cancel(waiting.allocation_id)
        for held in self._ledger.held(20):
            if held.node != self._name:
                continue
            if held.started_at is None:
                self._ledger.start(
                    held.allocation_id, held.token, f"w-{self._name}", self._incarnation, uuid.uuid4().hex, True
                )
            else:
                outcome = self._random.choices(["success", "failure", "lost", "requeue"], [8, 2, 1, 1])[0]
                self._ledger.release(held.allocation_id, held.token, outcome)


def main(url: str, pool: str, name: str) -> None:
    """Until SIGTERM."""
    load = Load(connect(Settings(backend_url=url, pool=pool, events_maxlen=10_000_000)), name)
    with asked_to_end() as stop:
        while not stop.is_set():
            try:
                load.step()
            except LedgerUnavailable:
                stop.wait(0.02)
            except AllocatorError:  # somebody else was faster, or the worker's life was over
                continue


if __name__ == "__main__":
    main(*sys.argv[1:])
