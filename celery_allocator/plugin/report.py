"""A worker's report to the ledger: what it serves, and what it runs.

Made when it begins, when its consumer has started again, when the server behind the ledger has changed, and when its
lease was lost. What the ledger has forgotten is claimed again; what has become somebody else's is stopped here first.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_allocator.errors import DeviceBusyError
from celery_allocator.ledger import Claim, Grant, Ledger, Mailbox
from celery_allocator.model import NodeInventory
from celery_allocator.plugin.endings import Endings
from celery_allocator.plugin.envelope import Envelope
from celery_allocator.plugin.holdings import Holding, Holdings
from celery_allocator.plugin.processes import born, is_gone, is_here, kill

logger = logging.getLogger(__name__)

#: Seconds between looks at a process that is about to be gone.
_WATCH_S = 0.1
#: Seconds between tries while a predecessor's lease runs out.
_BUSY_S = 1.0


class Reporter:
    """Registers one worker, with what it runs."""

    def __init__(
        self,
        app: Celery,
        worker: str,
        inventory: NodeInventory,
        device_id: str,
        queue: str,
        lease_s: float,
        publish: Callable[[tuple[Grant, ...]], None],
    ) -> None:
        self.app = app
        self.worker = worker
        self.inventory = inventory
        self.device_id = device_id
        self.queue = queue
        self.slots = 0
        self.mailbox: Mailbox | None = None
        #: The run of the server that was last reported to.
        self.run_id = ""
        self._lease_s = lease_s
        self._publish = publish
        #: Until when (monotonic) it waits for others to report what has ended; ``None`` while nothing is in the way.
        self._patience: float | None = None

    def report(
        self,
        ledger: Ledger,
        incarnation: str,
        holdings: Holdings,
        endings: Endings,
        stopping: Callable[[], bool],
        withhold: Callable[[], None],
    ) -> int:
        """Report, and serve the device from now on. Returns how many tasks turned out not to be this worker's any more.

        A namesake or predecessor on the same device whose process is gone is taken over at once; one whose process
        cannot be seen from here is waited for until its lease is over. ``withhold``: called when the device is known
        and before anything is granted there. Raises :class:`DeviceBusyError` when another live worker serves the
        device, :class:`LedgerError`.
        """
        number, paused = ledger.rejoin(self.worker, self.run_id, self._lease_s)
        run_id = ledger.run_id  # known now, also to a client that had not connected before
        if paused:
            logger.warning("the ledger has lost what it was told: granting pauses until the workers have reported")
        self._publish(ledger.register_node(self.inventory, self._lease_s))
        # What has ended unheard goes first: what runs here may have taken its place.
        device = f"{self.inventory.node}/{self.device_id}"
        ledger.unreported(self.worker, incarnation, device, number, _runs(holdings))
        stale, later = self._claim_again(ledger, number, holdings, endings)
        takeover = ""
        while True:
            withhold()
            try:
                grants = ledger.register_worker(
                    self.worker,
                    incarnation,
                    self.inventory.node,
                    self.device_id,
                    slots=self.slots,
                    queue=self.queue,
                    lease_s=self._lease_s,
                    pid=os.getpid(),
                    born=born(os.getpid()) or "",
                    takeover=takeover,
                    mailbox=self.mailbox,
                    report=number,
                    last_word=not later,
                    runs=_runs(holdings),
                )
            except DeviceBusyError as busy:
                local = busy.node == self.inventory.node and busy.pid > 0 and is_here(busy.born)
                ourselves = local and busy.pid == os.getpid() and busy.born == born(os.getpid())
                if ourselves or (local and is_gone(busy.pid, busy.born)):
                    takeover = busy.incarnation
                    continue
                if local or busy.holder != self.worker or stopping():
                    raise
                logger.warning("%s; waiting for the lease of its predecessor to run out", busy)
                time.sleep(min(busy.lease_left_s + 0.05, _BUSY_S))
                continue
            if not later:
                self.run_id, self._patience = run_id, None
            self._publish(grants)
            return stale

    def _claim_again(self, ledger: Ledger, number: int, holdings: Holdings, endings: Endings) -> tuple[int, bool]:
        """Have the ledger count what runs here; stop what it counts as somebody else's, and wait until that is gone.

        Returns how many those were, and whether others have to report before all is clear.
        """
        stopped: list[tuple[int, str | None]] = []
        stale, later = 0, False
        patient = self._patience is None or time.monotonic() < self._patience
        for holding in holdings.all():
            request = holding.request()
            verdict, reason = ledger.reclaim(
                holding.allocation,
                self.worker,
                repeatable=bool(request is not None and request.task.acks_late),
                message=_message_of(request),
                report=number,
                run_id=self.run_id,
                patient=patient,
            )
            if verdict is Claim.LATER:
                logger.warning("%s runs here, and %s: asking again", holding.allocation.allocation_id, reason)
                later = True
            if verdict is not Claim.STALE:
                continue
            stale += 1
            holdings.drop(holding.allocation)
            if request is not None and holding.allocation not in endings:
                stopped += _stop(holding, request, reason)
        while stopped := [(pid, since) for pid, since in stopped if not is_gone(pid, since)]:
            time.sleep(_WATCH_S)
        if later and self._patience is None:
            self._patience = time.monotonic() + self._lease_s
        return stale, later


def _runs(holdings: Holdings) -> list[str]:
    """Ids of all that runs here, or may."""
    return [held.allocation.allocation_id for held in holdings.all()] + holdings.unanswered()


def _stop(holding: Holding, request: Any, reason: str) -> list[tuple[int, str | None]]:
    """End the process that runs a task whose grant is not this worker's any more. Returns its pid and start time."""
    name, task_id, pid = holding.allocation.task_name, holding.allocation.task_id, request.worker_pid
    request.stale = reason
    if pid is None:  # lies in the pool: the fence keeps it from beginning
        logger.error("task %s[%s] will not begin here: the lease of this worker ran out, and %s", name, task_id, reason)
        return []
    if pid == os.getpid():
        logger.error(
            "task %s[%s] runs on without a grant (the lease of this worker ran out, and %s): this pool has no process "
            "of its own for it that could be ended",
            name,
            task_id,
            reason,
        )
        return []
    logger.error(
        "task %s[%s] is stopped (process %d killed): the lease of this worker ran out, and %s",
        name,
        task_id,
        pid,
        reason,
    )
    since = born(pid)
    kill(pid)
    return [(pid, since)]


def _message_of(request: Any) -> bytes:
    """The message of a request as the ledger keeps it; empty if it is not to be had any more."""
    try:
        return Envelope.of(request.message).pack()
    except (AttributeError, LookupError, TypeError, ValueError):
        return b""
