"""The keeper: a plain thread in the worker's main process that keeps its claim and everybody's ledger in order.

It renews the lease, runs the maintenance tick, reports what runs here when the ledger asks, and releases what the child
that ran a task could not: a task whose process was killed holds its resources until that process is really gone. It is
a thread of its own because the event loop's timers stop during solo tasks and shutdown.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from typing import Any

from celery import Celery

from celery_allocator.errors import AllocatorError, LedgerUnavailable
from celery_allocator.ledger import Beat, Grant, Ledger
from celery_allocator.model import Allocation, NodeInventory
from celery_allocator.operations import Effect
from celery_allocator.plugin import deliveries
from celery_allocator.plugin.auditor import Auditor
from celery_allocator.plugin.children import retire
from celery_allocator.plugin.describing import describe
from celery_allocator.plugin.endings import Ending, Endings
from celery_allocator.plugin.fence import Fence, clock
from celery_allocator.plugin.found import Found
from celery_allocator.plugin.hardware import Hardware
from celery_allocator.plugin.holdings import Holding, Holdings
from celery_allocator.plugin.mailbox import find_mailbox
from celery_allocator.plugin.pool import forget_termination, mend
from celery_allocator.plugin.processes import born, kill_family
from celery_allocator.plugin.report import Reporter
from celery_allocator.plugin.sampled import Sampled
from celery_allocator.plugin.session import session
from celery_allocator.plugin.wake import Wake

logger = logging.getLogger(__name__)

#: Seconds between looks at a process that is about to be gone.
_WATCH_S = 0.1
#: Seconds between looks at what children have ended, at most.
_LOOK_S = 1.0
#: Seconds without any answer of the ledger, beyond a tick's, that count as an outage.
_AWAY_S = 2.0
#: Seconds a leaving worker waits for its last messages and results; else others send and write them.
_FAREWELL_S = 5.0
#: Seconds a leaving worker waits for killed children to be gone.
_LEAVE_S = 10.0


class WorkerKeeper:
    """One worker's presence in the ledger. Thread-safe; made in the main process; ``register`` starts it."""

    def __init__(self, app: Celery, worker: str, inventory: NodeInventory, device_id: str, queue: str) -> None:
        self.app = app
        self.worker = worker
        self.queue = queue
        self.incarnation = uuid.uuid4().hex
        self.fence = Fence()
        self._own_ledger: Ledger | None = None
        self._settings = session(app).settings
        self._messages = deliveries.messages(app, "messages")
        self._results = deliveries.results(app, "results")
        self._reporter = Reporter(app, worker, inventory, device_id, queue, self._settings.lease_s, self._publish)
        self._pool: Any = None
        self._holdings = Holdings()
        self._endings = Endings(settled=self._holdings.drop)
        self._wake = Wake()
        self._hardware = Hardware(
            self._settings,
            self._reporter,
            self._holdings,
            self._endings,
            wake=self._wake.set,
            connect=lambda: session(app).connect(self._settings),
            settle=self.settle,
            lose=self.lose,
        )
        #: Held while reporting: what passes the gate meanwhile would be missing in the report.
        self._gate = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        #: Set by a signal handler, so no event: that has a lock.
        self._closing = False
        self._closed = False
        #: Whether there is a lease to renew: from the first report until it leaves.
        self._serving = False
        self._heard = self._beat_at = time.monotonic()
        self._outage = False
        #: What went wrong last, until all is well again.
        self._complaint = ""
        #: Whether it has ticked before: else it cannot know for how long others could not reach the server.
        self._ticked = False
        self._auditor = Auditor(self._settings.pool)

    @property
    def _ledger(self) -> Ledger:
        """A client of the keeper's own: on a slow server it must not wait for a new connection to renew the lease."""
        if self._own_ledger is None:
            self._own_ledger = session(self.app).connect(self._settings)
        return self._own_ledger

    @property
    def sampled(self) -> Sampled:
        """What children are told of samples."""
        return self._hardware.sampled

    @property
    def found(self) -> Found:
        """Where the children of its pool tell what they held when a task began."""
        return self._hardware.found

    # --- called by bootsteps, gate and request

    def register(self, slots: int, pool: Any) -> None:
        """Tell the ledger that this worker serves its device with ``slots`` slots, and begin to keep that so.

        Also after the consumer has started again. Raises :class:`DeviceBusyError` when another live worker serves the
        device, :class:`LedgerUnavailable`.
        """
        self._pool = pool
        mend(pool)
        self._hardware.begin(pool)
        self._reporter.slots = slots
        self._reporter.mailbox = find_mailbox(self.app, self._ledger, self.queue)
        self._report()
        self._serving = True
        device = f"{self._reporter.inventory.node}/{self._reporter.device_id}"
        logger.info("serving %s with %d slots on queue %s", device, slots, self.queue)
        self._hardware.serve()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="allocator-keeper", daemon=True)
            self._thread.start()

    def start(self, allocation_id: str, token: int, nonce: str, repeatable: bool) -> Allocation:
        """Pass the gate for one delivery. Raises :class:`StaleTokenError`, :class:`LedgerUnavailable`.

        While the ledger is known to be away, or this worker reports to it, that is said at once: the caller is the
        event loop, which has children to listen to.
        """
        if self._outage or not self._gate.acquire(blocking=False):
            self._holdings.asks_on(allocation_id)
            raise LedgerUnavailable("the ledger is away, or being told what runs here")
        try:
            self._holdings.asked(allocation_id, token)
            ledger = session(self.app).ledger
            allocation = ledger.start(allocation_id, token, self.worker, self.incarnation, nonce, repeatable)
        except LedgerUnavailable:
            raise
        except AllocatorError:
            self._holdings.answered(allocation_id)
            raise
        finally:
            self._gate.release()
        return allocation

    def holds(self, allocation: Allocation, request: Any) -> None:
        """A request was made for a task that has passed the gate."""
        self._holdings.add(allocation, request)
        self._holdings.answered(allocation.allocation_id)

    def begun(self, allocation: Allocation, pid: int) -> None:
        """Child process ``pid`` has begun a task."""
        self._hardware.watch.began(pid, allocation)
        self._holdings.begun(allocation, pid)
        forget_termination(self._pool, pid)

    def begun_other(self, pid: int) -> None:
        """Child process ``pid`` has begun a task that is not the allocator's."""
        self._hardware.watch.began(pid)

    def ended(self, allocation: Allocation, outcome: str, *, error: str = "", by_child: bool = False) -> None:
        """The task ended and nothing of it runs: if its child has not released it, the keeper does.

        ``by_child``: it ended in a child, which nearly always has; that is made sure of for many at once, with the next
        beat or tick.
        """
        self._endings.add(Ending(allocation, outcome, error))
        self._holdings.answered(allocation.allocation_id)
        if not by_child:
            self._wake.set()

    def gone(self, allocation: Allocation, outcome: str, pid: int | None, *, error: str = "") -> None:
        """The task ended violently: release it when process ``pid`` is gone."""
        if pid is None or pid == os.getpid():  # never started, or a pool of threads: there is no process to wait for
            self._endings.add(Ending(allocation, outcome, error))
        else:
            self._endings.add(Ending(allocation, outcome, error, pid, born(pid), self._hardware.watch.is_free))
        self._wake.set()

    def lose(self, holding: Holding, reason: str) -> None:
        """End the process of a task that can do nothing any more: it is lost, and granted again if it may be."""
        request, allocation = holding.request(), holding.allocation
        if request is None or request.stale or allocation in self._endings or request.worker_pid is None:
            return  # it ends already; or no process has begun it yet
        pid = request.worker_pid
        if pid == os.getpid():
            return  # a pool of threads has no process of its own for it that could be ended
        request.stale = reason
        logger.error(
            "task %s[%s] is lost: %s; process %d is killed", allocation.task_name, allocation.task_id, reason, pid
        )
        self.gone(allocation, "lost", pid)
        kill_family(pid)

    def totals_mb(self, allocation: Allocation) -> list[int]:
        """Memory of each of its GPUs, in MB; empty where one is not this node's."""
        found = [self._reporter.inventory.device(name) for name in allocation.gpu_ids]
        return [device.memory_mb for device in found if device is not None] if all(found) else []

    def replace_child(self, pid: int) -> None:
        """A child that is idle is to be ended, so that a fresh one takes its place."""
        retire(self._pool, pid)

    def info(self) -> dict[str, Any]:
        """Node, device and queue, for people."""
        return {"node": self._reporter.inventory.node, "device": self._reporter.device_id, "queue": self.queue}

    def settle(self, effect: Effect) -> None:
        """An operator has acted through this worker: have its grants published and its results written."""
        self._messages.hand_over(effect.grants)
        self._results.hand_over(effect.obituaries)

    def describe(self) -> dict[str, Any]:
        """What this worker knows of itself, as plain data; asks nobody."""
        return describe(self._reporter, self._holdings, self.fence, self._hardware.meter) | {
            "ledger": self._ledger.url,
            "closing": self._closing,
            "outage": self._outage,
            "complaint": self._complaint,
            "withheld": self._hardware.describe(),
        }

    @property
    def outage(self) -> bool:
        """Whether the ledger did not answer when it was last asked."""
        return self._outage

    def close(self) -> None:
        """Ask for no more grants; unstarted ones go elsewhere. Safe in a signal handler (the thread does the work)."""
        self._closing = True
        self._wake.set()

    def give_back(self, *, pool_stopped: bool) -> None:
        """What no child has been given will not be begun: Celery drops it. It goes back into line."""
        for holding, request in self._holdings.unbegun(pool_stopped=pool_stopped):
            request.given_back = True
            self.ended(holding.allocation, "requeue")

    def leave(self) -> None:
        """Leave the ledger: nothing runs here any more, and what still counts as running is lost."""
        try:
            self._hardware.close()
            self.give_back(pool_stopped=True)
            self._await_endings()
            self._hardware.end()
            self._serving = False
            self._publish(self._ledger.unregister_worker(self.worker, self.incarnation))
            self._tick(lock=False)
        except AllocatorError as error:
            logger.warning("leaving without telling the ledger: %s; its lease will run out", error)
        deadline = time.monotonic() + _FAREWELL_S
        for courier in (self._messages, self._results):
            if not courier.finish(max(0.0, deadline - time.monotonic())):
                logger.warning("leaving before all messages are sent and all results written: other workers will")
        self._ledger.client.close()

    def _await_endings(self) -> None:
        """Give killed children a while to be gone, so that what they held is released and not lost; stop the thread."""
        deadline = time.monotonic() + _LEAVE_S
        try:
            while self._settle_endings() and time.monotonic() < deadline:
                time.sleep(_WATCH_S)
        finally:
            self._stop.set()
            self._wake.set()
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(timeout=_LEAVE_S)

    # --- the thread

    def _run(self) -> None:
        tick = time.monotonic()
        while not self._stop.is_set():
            watching = False
            try:
                self._close()
                self._keep(at_once=self._outage)
                if self._ledger.run_id != self._reporter.run_id:
                    self._report()
                if self._serving:
                    self._publish(self._hardware.after_look(self._ledger, self.incarnation))
                self._hardware.watch.tell(self._ledger, self._keep)
                watching = self._settle_endings()
                if time.monotonic() >= tick or self._outage:
                    self._tick()
                    tick = time.monotonic() + self._settings.tick_s
                self._take_back_dropped()
                self._recovered()
            except AllocatorError as error:
                self._failed(error)
            except Exception:
                logger.exception("keeper: unexpected error; going on")
                self._stop.wait(_LOOK_S)
            due = min(self._beat_at, tick, time.monotonic() + _LOOK_S) - time.monotonic()
            self._wake.wait(min(due, _WATCH_S) if watching else max(due, 0.01))

    def _close(self) -> None:
        if self._closing and not self._closed:
            self._publish(self._ledger.close_worker(self.worker, self.incarnation))
            self._closed = True

    def _keep(self, at_once: bool = False) -> None:
        """Renew the lease if it is time; called between any two things that take time."""
        if self._serving and (at_once or time.monotonic() >= self._beat_at):
            self._beat()
            self._beat_at = time.monotonic() + self._settings.heartbeat_interval_s

    def _beat(self) -> None:
        asked = clock()
        beat = self._ledger.heartbeat(
            self.worker, self.incarnation, self._settings.lease_s, self._hardware.meter.take()
        )
        if beat is Beat.LOST:
            self.fence.lose()
            logger.error("the lease of %s ran out (paused, or cut off from the ledger): registering again", self.worker)
            self._report(anew=True)
        elif beat is Beat.REPORT:
            self._report()
        else:
            self.fence.extend(asked + self._settings.lease_s)
            self._publish(self._hardware.at_beat(self._ledger, self.incarnation))

    def _report(self, anew: bool = False) -> None:
        with self._gate:
            if anew:
                self.incarnation = uuid.uuid4().hex
            asked = clock()
            stale = self._reporter.report(
                self._ledger,
                self.incarnation,
                self._holdings,
                self._endings,
                stopping=lambda: self._closing,
                withhold=lambda: self._publish(self._hardware.withhold_first(self._ledger, self.incarnation)),
            )
            if stale:
                self.fence.lose()
            self.fence.extend(asked + self._settings.lease_s)
            # A worker that is closing opened its device by that: the next round of the thread closes it again.
            self._closed = False

    def _tick(self, lock: bool = True) -> None:
        # Also an outage that the client's own retries have bridged is one; others have not been heard either, perhaps.
        away = time.monotonic() - self._heard
        known = away if away > self._settings.tick_s + _AWAY_S else 0.0
        ticked = self._ledger.tick(
            lock_s=self._settings.tick_s * 0.9 if lock else None, away_s=known if self._ticked else None
        )
        self._ticked = True
        for worker in ticked.lost_workers:
            logger.error("worker %s is gone: its lease ran out; its tasks are granted again or failed", worker)
        self._publish(ticked.grants)
        self._results.hand_over(ticked.obituaries)
        if ticked.ran:
            self._keep()
            self._auditor.look(self._ledger)

    def _settle_endings(self) -> bool:
        return self._endings.settle(self._ledger, self._publish, self._keep)

    def _publish(self, grants: tuple[Grant, ...]) -> None:
        self._messages.hand_over(grants)

    def _take_back_dropped(self) -> None:
        """What Celery has dropped, or never made a request for, goes back into line; what had begun is lost."""
        for holding in self._holdings.orphans():
            allocation = holding.allocation
            if allocation in self._endings:
                continue
            if holding.pid is None:
                logger.warning("%s was dropped before it began: back into line", allocation.allocation_id)
                self.ended(allocation, "requeue")
            else:  # its pool is gone (a cold shutdown): it may not run once more unless it says so
                logger.warning("%s was dropped while it ran: it is lost", allocation.allocation_id)
                self.gone(allocation, "lost", holding.pid)
        for started in self._holdings.abandoned():
            self._keep()
            self._publish(self._ledger.release(started.allocation_id, started.token, "requeue").grants)
            self._holdings.answered(started.allocation_id)

    def _failed(self, error: AllocatorError) -> None:
        if self._complaint != str(error):
            logger.error("keeper: %s; trying again", error)
        self._complaint = str(error)
        # A server that refuses something answers: the gate stays open.
        self._outage = isinstance(error, LedgerUnavailable)
        if not self._outage:
            self._heard = time.monotonic()
        self._stop.wait(min(_LOOK_S, self._settings.tick_s))

    def _recovered(self) -> None:
        if self._complaint:
            logger.warning("keeper: the ledger answers again")
        self._outage, self._complaint = False, ""
        self._heard = time.monotonic()
