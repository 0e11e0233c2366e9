"""An allocation held for the length of a ``with`` block."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery_allocator.allocating import reply
from celery_allocator.allocating.acquire import WAITS, acquire
from celery_allocator.allocating.function import release
from celery_allocator.allocating.request import LONGEST_S, parse
from celery_allocator.allocating.session import Session, default_session
from celery_allocator.errors import (
    AllocationNotFound,
    AllocationTimeout,
    AllocatorError,
    LedgerError,
    StaleTokenError,
)
from celery_allocator.model import Allocation, State

_log = logging.getLogger(__name__)

#: Default TTL, in seconds: how long a holder that died keeps its slots. The living renews at a third of it.
LEASE_TTL_S = 60.0


class Lease:
    """A granted allocation that renews itself."""

    def __init__(self, session: Session, allocation: Allocation, ttl_s: float) -> None:
        self.allocation = allocation
        self._session = session
        self._ttl_s = ttl_s
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(
            target=self._renew, name=f"celery-allocator-lease-{allocation.allocation_id}", daemon=True
        )

    @property
    def resources(self) -> dict[str, Any]:
        """What is held: ``gpu_id``, ``gpu_memory_mb``, ``cpu_cores`` (ids), ``ram_mb``."""
        return reply.resources(self.allocation)

    @property
    def lost(self) -> bool:
        """Whether the claim ended, or could not be renewed in time: others may use its device and cores now."""
        return self._lost.is_set()

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing, and wait until no renewal is under way."""
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(self._ttl_s / 3):
            asked = time.monotonic()
            try:
                self._session.ledger.renew(self.allocation.allocation_id, self._ttl_s, self.allocation.token)
                renewed = asked
                if self.allocation.node == self._session.inventory.node:
                    self._session.offer_host(self._ttl_s)
            except (AllocationNotFound, StaleTokenError) as error:
                _log.warning("the lease is lost: %s", error)
                self._lost.set()
                return
            except LedgerError as error:  # the next attempt may still be in time
                _log.warning("the lease cannot be renewed now: %s", error)
                if time.monotonic() - renewed > self._ttl_s:
                    self._lost.set()


@contextmanager
def lease(
    task_id: str,
    task_type: str,
    resource_requirements: Mapping[str, int] | None = None,
    allocation_strategy: str = "best_fit",
    *,
    wait_s: float | None = None,
    ttl_s: float = LEASE_TTL_S,
    session: Session | None = None,
) -> Iterator[Lease]:
    """Hold an allocation while the block runs; it is renewed in the background and released at the end.

    Waits up to ``wait_s`` seconds for room (``None``: as long as it takes). Raises
    :class:`~celery_allocator.errors.AllocationTimeout` when there was none in that time, and any other
    :class:`~celery_allocator.errors.AllocatorError` that :func:`allocate_resources` would tell of.
    """
    active = session if session is not None else default_session()
    request = parse(
        active.settings,
        task_id,
        task_type,
        resource_requirements,
        allocation_strategy,
        LONGEST_S if wait_s is None else wait_s,
        ttl_s,
        active.resolve,
    )
    allocation = acquire(active, request).allocation
    if allocation.state in WAITS:
        active.ledger.cancel(allocation.allocation_id, "timeout", publishes=False)
        held_up = allocation.state is State.ON_HOLD
        where = "on hold by an operator" if held_up else f"number {allocation.queue_position} in line"
        raise AllocationTimeout(f"no room for task {task_id} within {request.wait_s:g} s: it was {where}")
    held = Lease(active, allocation, request.ttl_s)
    outcome, owner = "failure", os.getpid()
    held.start()
    try:
        yield held
        outcome = "success"
    finally:
        if os.getpid() == owner:  # a child that was forked inside the block does not own the lease
            held.stop()
            _give_back(active, allocation, outcome)


def _give_back(session: Session, allocation: Allocation, outcome: str) -> None:
    """Release at the end of a block. A failure here must not hide how the block ended; the TTL is the safety net."""
    try:
        release(session, allocation.allocation_id, allocation.token, outcome)
    except AllocatorError as error:
        _log.warning("the lease was not released: %s", error)
