"""The keeper: a plain thread in the worker's main process that keeps its claim and everybody's ledger in order.

It renews the lease, runs the maintenance tick, and releases what the child that ran a task could not: a task whose
process was killed holds its resources until that process is really gone. It is a thread of its own because the event
loop's timers stop during solo tasks and shutdown.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import psutil
from celery import Celery

from celery_allocator.errors import AllocatorError, DeviceBusyError
from celery_allocator.ledger import Ledger, Mailbox
from celery_allocator.model import CPU_DEVICE, Allocation, NodeInventory
from celery_allocator.plugin.mailbox import find_mailbox
from celery_allocator.plugin.outcome import write_results
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

#: Seconds between looks at a process that is about to be gone.
_WATCH_S = 0.1
#: Seconds between looks at what children have ended, at most.
_LOOK_S = 1.0
#: Seconds a leaving worker waits for killed children to be gone before it gives their resources back.
_LEAVE_S = 10.0


@dataclass(frozen=True)
class Ending:
    """An allocation to be released: at once, or when process ``pid`` (started at ``born``) is gone."""

    allocation: Allocation
    outcome: str
    pid: int | None = None
    born: float | None = None


class WorkerKeeper:
    """One worker's presence in the ledger. Thread-safe; made in the main process; ``register`` starts it."""

    def __init__(self, app: Celery, worker: str, inventory: NodeInventory, device_id: str, queue: str) -> None:
        self.app = app
        self.worker = worker
        self.inventory = inventory
        self.device_id = device_id
        self.queue = queue
        self.incarnation = uuid.uuid4().hex
        self._slots = 0
        self._mailbox: Mailbox | None = None
        self._settings = session(app).settings
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._endings: list[Ending] = []
        self._outage = False

    @property
    def _ledger(self) -> Ledger:
        return session(self.app).ledger

    # --- called by bootsteps, gate and request

    def register(self, slots: int) -> None:
        """Tell the ledger that this worker serves its device with ``slots`` slots, and begin to keep that so.

        A namesake or predecessor on the same device whose process is gone is taken over at once; one whose process
        cannot be seen from here is waited for until its lease is over. Raises :class:`DeviceBusyError` when another
        live worker serves the device.
        """
        self._slots = slots
        self._mailbox = find_mailbox(self.app, self._ledger, self.queue)
        self._register()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="allocator-keeper", daemon=True)
            self._thread.start()

    def start(self, allocation_id: str, token: int, nonce: str, repeatable: bool) -> Allocation:
        """Pass the gate for one delivery. Raises :class:`StaleTokenError`, :class:`LedgerUnavailable`."""
        return self._ledger.start(allocation_id, token, self.worker, self.incarnation, nonce, repeatable)

    def ended(self, allocation: Allocation, outcome: str, *, by_child: bool = False) -> None:
        """The task ended and nothing of it runs: if its child has not released it, the keeper does.

        ``by_child``: it ended in a child, which nearly always has; that is made sure of for many at once, with the next
        beat or tick.
        """
        self._add(Ending(allocation, outcome), wake=not by_child)

    def gone(self, allocation: Allocation, outcome: str, pid: int | None) -> None:
        """The task ended violently: release it when process ``pid`` is gone."""
        if pid is None or pid == os.getpid():  # never started, or a pool of threads: there is no process to wait for
            self._add(Ending(allocation, outcome))
            return
        self._add(Ending(allocation, outcome, pid, _born(pid)))

    def info(self) -> dict[str, Any]:
        """Node, device and queue, for people."""
        return {"node": self.inventory.node, "device": self.device_id, "queue": self.queue}

    def close(self) -> None:
        """Ask for no more grants; unstarted ones go elsewhere. Safe in a signal handler (the thread does the work)."""
        self._closing.set()
        self._wake.set()

    def leave(self) -> None:
        """Leave the ledger: nothing runs here any more, and what still counts as running is lost."""
        try:
            self._await_endings()
            publish_grants(self.app, self._ledger.unregister_worker(self.worker, self.incarnation))
            self._tick(lock=False)
        except AllocatorError as error:
            logger.warning("leaving without telling the ledger: %s; its lease will run out", error)

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
        beat = tick = time.monotonic()
        closed = False
        while not self._stop.is_set():
            now = time.monotonic()
            watching = False
            try:
                if self._closing.is_set() and not closed:
                    publish_grants(self.app, self._ledger.close_worker(self.worker, self.incarnation))
                    closed = True
                if now >= beat:
                    beat = now + self._settings.heartbeat_interval_s
                    self._beat(closed)
                watching = self._settle_endings()
                if now >= tick:
                    tick = now + self._settings.tick_s
                    self._tick()
                self._recovered()
            except AllocatorError as error:
                self._failed(error)
            except Exception:
                logger.exception("keeper: unexpected error; going on")
            due = min(beat, tick, now + _LOOK_S) - time.monotonic()
            self._wake.wait(min(due, _WATCH_S) if watching else max(due, 0.01))
            self._wake.clear()

    def _register(self) -> None:
        device = f"{self.inventory.node}/{self.device_id}"
        takeover = ""
        while True:
            publish_grants(self.app, self._ledger.register_node(self.inventory, self._settings.lease_s))
            try:
                grants = self._ledger.register_worker(
                    self.worker,
                    self.incarnation,
                    self.inventory.node,
                    self.device_id,
                    slots=self._slots,
                    queue=self.queue,
                    lease_s=self._settings.lease_s,
                    pid=os.getpid(),
                    born=_born(os.getpid()) or 0.0,
                    takeover=takeover,
                    mailbox=self._mailbox,
                )
            except DeviceBusyError as busy:
                local = busy.node == self.inventory.node and busy.pid > 0
                if local and _is_gone(busy.pid, busy.born):
                    takeover = busy.incarnation
                    continue
                if local or busy.holder != self.worker:
                    raise
                logger.warning("%s; waiting for the lease of its predecessor to run out", busy)
                self._wake.wait(min(busy.lease_left_s + 0.05, 1.0))
                continue
            publish_grants(self.app, grants)
            logger.info("serving %s with %d slots on queue %s", device, self._slots, self.queue)
            return

    def _beat(self, closed: bool) -> None:
        if self._ledger.heartbeat(self.worker, self.incarnation, self._settings.lease_s) or closed:
            return
        logger.error("the lease of %s ran out (paused, or cut off from the ledger): registering again", self.worker)
        self.incarnation = uuid.uuid4().hex
        self._register()

    def _tick(self, lock: bool = True) -> None:
        ticked = self._ledger.tick(lock_s=self._settings.tick_s * 0.9 if lock else None)
        for worker in ticked.lost_workers:
            logger.error("worker %s is gone: its lease ran out; its tasks are granted again or failed", worker)
        publish_grants(self.app, ticked.grants)
        write_results(self.app, ticked.obituaries)

    def _settle_endings(self) -> bool:
        """Release what has ended; True while a process is still to be waited for."""
        with self._lock:
            endings, self._endings = self._endings, []
        ready: list[Ending] = []
        waiting: list[Ending] = []
        for ending in endings:
            (ready if ending.pid is None or _is_gone(ending.pid, ending.born) else waiting).append(ending)
        try:
            # Nearly always the child has released already: one call tells for all of them.
            held = self._ledger.still_held([e.allocation.allocation_id for e in ready])
            for ending in ready:
                if ending.allocation.allocation_id in held:
                    released = self._ledger.release(
                        ending.allocation.allocation_id, ending.allocation.token, ending.outcome
                    )
                    publish_grants(self.app, released.grants)
        except AllocatorError:
            waiting = endings
            raise
        finally:
            with self._lock:
                self._endings = waiting + self._endings
        return bool(waiting)

    def _add(self, ending: Ending, wake: bool = True) -> None:
        with self._lock:
            self._endings.append(ending)
        if wake:
            self._wake.set()

    def _failed(self, error: AllocatorError) -> None:
        if not self._outage:
            logger.error("keeper: %s; trying again", error)
        self._outage = True
        self._stop.wait(min(1.0, self._settings.tick_s))

    def _recovered(self) -> None:
        if self._outage:
            logger.warning("keeper: the ledger answers again")
        self._outage = False


def device_id_of(which: str, inventory: NodeInventory) -> str:
    """The device that ``--gpu`` names: an index, a UUID, a device id, or ``none`` for CPU-only work.

    Raises :class:`LookupError` listing the devices there are.
    """
    if which.strip().lower() in ("none", CPU_DEVICE):
        return CPU_DEVICE
    device = inventory.device(which.strip())
    if device is None:
        known = ", ".join(f"{d.index} ({d.uuid}, {d.memory_mb} MB)" for d in inventory.devices)
        raise LookupError(
            f"--gpu {which}: {inventory.node} has no such GPU. It has: {known or 'none'}. "
            "Use an index, a UUID, or 'none' for CPU-only work; ALLOCATOR_DEVICES=sim:2x24576 simulates two"
        )
    return device.device_id


def _born(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_gone(pid: int, born: float | None) -> bool:
    """Whether the process has ended; a zombie has given its memory back."""
    try:
        process = psutil.Process(pid)
        # Start times come from one clock, but are computed from boot time: allow for rounding.
        if born is not None and abs(process.create_time() - born) > 1.0:
            return True
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
