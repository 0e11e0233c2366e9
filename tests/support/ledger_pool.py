"""A pool of simulated nodes for tests of the ledger, on a clock that stands still unless it is moved."""

from __future__ import annotations

import itertools
import json
from typing import Any

import redis

from celery_allocator.ledger import Grant, Ledger, Options, Submitted, keys
from celery_allocator.model import (
    NAMES,
    Allocation,
    DeviceInventory,
    DeviceState,
    Kind,
    Link,
    NodeInventory,
    Peaks,
    Requirements,
)

LEASE_S = 60.0


class LedgerPool:
    """A ledger with its clock (``at``, seconds) and short ways to say nodes, workers and submissions."""

    def __init__(self, client: redis.Redis, pool: str, options: Options | None = None) -> None:
        self.at = 1_700_000_000.0
        self.ledger = Ledger(client, pool, clock=lambda: self.at, options=options)
        self._names = itertools.count(1)

    def node(
        self,
        node: str = "n1",
        gpus: tuple[int, ...] = (10_000,),
        *,
        cores: int | tuple[int, ...] = 8,
        ram: int = 64_000,
        near: dict[int, tuple[int, ...]] | None = None,
        slots: int | None = 4,
        lease_s: float = LEASE_S,
        models: tuple[str, ...] = (),
        labels: dict[str, str] | None = None,
        links: dict[tuple[str, str], Link] | None = None,
    ) -> tuple[Grant, ...]:
        """Register a node and, unless ``slots`` is None, one worker per device and one for CPU work."""
        ids = tuple(range(cores)) if isinstance(cores, int) else cores
        models, near = models or ("simulated",) * len(gpus), near or {}
        devices = tuple(
            DeviceInventory(f"gpu_{i}", i, f"GPU-{node}-{i}", models[i], mb, near.get(i, ()))
            for i, mb in enumerate(gpus)
        )
        grants = self.ledger.register_node(NodeInventory(node, ids, ram, devices, links or {}, labels or {}), lease_s)
        for device in [*(d.device_id for d in devices), "cpu"] if slots is not None else []:
            grants += self.worker(node, device, slots=slots or 0, lease_s=lease_s)
        return grants

    def worker(
        self, node: str, device: str, incarnation: str = "one", *, name: str = "", slots: int = 4, **options: Any
    ) -> tuple[Grant, ...]:
        """Register a worker, named after its device unless said otherwise."""
        options.setdefault("lease_s", LEASE_S)
        name = name or f"w.{node}.{device}"
        return self.ledger.register_worker(
            name, incarnation, node, device, slots=slots, queue=f"q.{node}.{device}", **options
        )

    def submit(self, gpu: int = 0, cores: int = 1, ram: int = 0, priority: int = 0, **options: Any) -> Submitted:
        """Submit a task under the next name (``a1``, ``a2``, …) or ``id``; its message is ``message of <id>``."""
        name = options.pop("id", None) or f"a{next(self._names)}"
        options.setdefault("message", f"message of {name}".encode())
        task_id = options.pop("task_id", f"task of {name}")
        more = {name: options.pop(name) for name in NAMES if name in options}
        if "share" in options:
            more["gpu"] = options.pop("share")
        requirements = Requirements(gpu, cores, ram, priority, **more)
        return self.ledger.submit(name, task_id, options.pop("task_name", "work"), requirements, **options)

    def by_hand(self, gpu: int = 0, cores: int = 1, ram: int = 0, ttl_s: float = 30.0, **options: Any) -> Submitted:
        """Submit an allocation made by hand."""
        return self.submit(gpu, cores, ram, kind=Kind.MANUAL, message=b"", ttl_s=ttl_s, **options)

    def start(
        self, allocation: Allocation, *, repeatable: bool = False, nonce: str = "delivery 1", incarnation: str = "one"
    ) -> Allocation:
        """Start a granted task on the worker of the device it was granted."""
        worker = self.device(f"{allocation.node}/{allocation.device_id}").worker or ""
        return self.ledger.start(allocation.allocation_id, allocation.token, worker, incarnation, nonce, repeatable)

    def ran(self, task_name: str, *seconds: float, size: str = "") -> None:
        """Let tasks of a name run for so long each, one after the other, on room that is there for them."""
        for length in seconds:
            running = self.running(task_name=task_name, size=size)
            self.at += length
            self.ledger.release(running.allocation_id, running.token, "success")

    def used(self, task_name: str, *runs: Peaks, **asked: Any) -> None:
        """Let tasks of a name run that use so much each, one after the other."""
        for peaks in runs:
            running = self.running(task_name=task_name, **asked)
            self.ledger.release(running.allocation_id, running.token, "success", peaks=peaks)

    def ends(self, allocation_id: str, outcome: str = "success") -> list[str]:
        """Release what holds; returns what was granted by that, in order."""
        reply = self.ledger.release(allocation_id, None, outcome)
        assert reply.done, reply
        return [grant.allocation_id for grant in reply.grants]

    def ticks(self, seconds: float = 0.0) -> list[str]:
        """So much time passes, then a tick; returns what was granted by that, in order."""
        self.at += seconds
        return [grant.allocation_id for grant in self.ledger.tick().grants]

    def state(self, allocation_id: str) -> str:
        """What an allocation is in now."""
        return self.ledger.get(allocation_id).state.value

    def quota(self, tenant: str, **quota: float) -> None:
        """A tenant's weight and caps, as they are recorded."""
        self.ledger.client.hset(keys.key(self.ledger.pool, "quotas"), tenant, json.dumps(quota))

    def reserved(self) -> dict[str, str]:
        """The reservation as it is recorded; without ``id``: there is none."""
        found = self.ledger.client.hgetall(keys.key(self.ledger.pool, "reserved"))
        return {name.decode(): value.decode() for name, value in found.items()}

    def device(self, key: str) -> DeviceState:
        """One device of the snapshot."""
        return next(d for d in self.ledger.snapshot().devices if d.key == key)

    def running(
        self, gpu: int = 0, cores: int = 1, ram: int = 0, *, repeatable: bool = False, **options: Any
    ) -> Allocation:
        """Submit a task that fits, and start it."""
        return self.start(self.submit(gpu, cores, ram, **options).allocation, repeatable=repeatable)

    def happened(self) -> list[str]:
        """Names of all events so far."""
        return [fields["event"] for _, fields in self.ledger.events()]
