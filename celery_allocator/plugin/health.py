"""The health of a worker's GPU: a plain thread in its main process that keeps work from a GPU that has failed.

A GPU that has fallen off the bus, reports a fatal error, or whose driver asks for a reset is drained: what was granted
there and has not started goes elsewhere. That is an operator's action like any other, journalled, with the worker as
its actor, and stays until somebody uncordons the device. Where the driver does not answer (it is restarted, say), the
device is drained after several looks in a row, and that is undone as soon as the GPU can be read again and nobody has
acted on it since.

What runs goes on, except on a GPU that is lost: its tasks' processes can do nothing any more, and are killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from celery_allocator.errors import (
    ActionRefused,
    AllocatorError,
    EntryNotFound,
    GpuLostError,
    InventoryError,
    JournalMoved,
)
from celery_allocator.inventory import FATAL, GpuHealth, GpuWatch, read_health
from celery_allocator.ledger import Ledger
from celery_allocator.ledger.journal import DONE
from celery_allocator.model import MAX_LABEL, DeviceInventory
from celery_allocator.operations import Actor, Drain, Effect, Operator
from celery_allocator.plugin.holdings import Holding

logger = logging.getLogger(__name__)

#: Looks in a row at which a GPU cannot be read before it is drained: a driver may be away for a moment.
_LOOKS = 3
#: Entries of the journal among which a worker that has started again looks for its own.
_RECENT = 100
SOURCE = "worker"
_LOST = "the GPU is lost: the driver says that it has fallen off the bus"
_UNREADABLE = "the GPU cannot be read: "


@dataclass(frozen=True)
class _Trouble:
    """``passing``: it may be over by itself. ``lost``: nothing can run there."""

    text: str
    passing: bool = False
    lost: bool = False


class HealthMonitor:
    """Looks every ``every_s`` seconds (0: never) once started, unless the device is simulated or no GPU (``None``).

    ``key``: the device as ``node/device``. ``lose`` is called with each holding whose GPU is lost, and why.
    """

    def __init__(
        self,
        worker: str,
        key: str,
        device: DeviceInventory | None,
        every_s: float,
        *,
        connect: Callable[[], Ledger],
        settle: Callable[[Effect], None],
        holdings: Callable[[], Iterable[Holding]],
        lose: Callable[[Holding, str], None],
    ) -> None:
        self._actor = f"worker:{worker}"[:MAX_LABEL]
        self._key = key
        self._every_s = every_s if device is not None and not device.simulated else 0.0
        self._watch = GpuWatch("" if device is None else device.uuid)
        self._uuid = "" if device is None else device.uuid
        self._connect = connect
        self._settle = settle
        self._holdings = holdings
        self._lose = lose
        self._own_ledger: Ledger | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._complaint = ""
        #: What was seen last; ``None``: not once yet.
        self._last: GpuHealth | None = None
        #: Whether it was looked whether the device was taken out before this worker began.
        self._recognised = False
        #: Looks in a row at which it could not be read.
        self._unread = 0
        #: Fatal errors that have not been acted on, and what was told of last.
        self._untold: list[str] = []
        self._told = ""
        #: The trouble for which this worker has drained its device; its journal entry, if that may be over by itself.
        self._acted: _Trouble | None = None
        self._passing: int | None = None

    def start(self) -> None:
        """Begin to look. A second call changes nothing."""
        if self._thread is None and self._every_s:
            self._thread = threading.Thread(target=self._run, name="allocator-health", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the look that is being made; does not wait for it: a driver may hang."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except AllocatorError as error:
                if self._complaint != str(error):
                    logger.error("health: %s; trying again", error)  # noqa: TRY400  # the text says it all
                self._complaint = str(error)
            except Exception:
                logger.exception("health: unexpected error; going on")
            else:
                self._complaint = ""
            self._stop.wait(self._every_s)
        self._watch.close()
        if self._own_ledger is not None:
            self._own_ledger.client.close()

    def look(self) -> None:
        """One look, and what follows from it. Raises what the ledger raises; then the next look tries again."""
        trouble = self._examine()
        if trouble is not None:
            self._act(trouble)
        elif self._unread == 0:
            self._untake()
        if trouble is not None and trouble.lost:
            self._end_tasks({self._uuid})
        self._end_tasks(self._lost_elsewhere())

    # --- what is wrong

    def _examine(self) -> _Trouble | None:
        try:
            now = self._watch.look()
        except GpuLostError:
            self._unread = 0
            return _Trouble(_LOST, lost=True)
        except InventoryError as error:
            self._unread += 1
            logger.log(logging.WARNING if self._unread == 1 else logging.DEBUG, "health: %s", error)
            told = f"{_UNREADABLE}{error.__cause__ or error}"  # the driver's words
            return _Trouble(told, passing=True) if self._unread >= _LOOKS else None
        self._unread = 0
        self._untold += _news(self._last, now)
        self._last = now
        self._recognise()
        return _Trouble("; ".join(dict.fromkeys(self._untold))) if self._untold else None

    def _lost_elsewhere(self) -> set[str]:
        """Other GPUs of what runs here that are lost: a task may hold several."""
        others = {uuid for holding in self._holdings() for uuid in _uuids(holding) if uuid != self._uuid}
        lost = set()
        for uuid in others:
            try:
                read_health(uuid)
            except GpuLostError:
                lost.add(uuid)
            except InventoryError as error:
                logger.debug("health: %s", error)
        return lost

    # --- what is done about it

    def _act(self, trouble: _Trouble) -> None:
        """Drain the device: once for what has happened, and again for what goes on where somebody has uncordoned it."""
        acted = self._acted
        worse = acted is None or (acted.passing and not trouble.passing)
        if worse or self._state()[0] == "ready":
            effect = self._operator(trouble.text).run(Drain(self._key))
            logger.error("health: %s is drained: %s", self._key, trouble.text)
            self._passing = effect.entry if trouble.passing else None
            self._acted = trouble
        elif trouble.text != self._told:
            logger.error("health: %s, which is drained already: %s", self._key, trouble.text)
        self._told = trouble.text
        self._untold.clear()

    def _untake(self) -> None:
        """It can be read again: what was done because it could not is undone, unless somebody has acted since."""
        if self._acted is not None and self._acted.lost:
            self._acted = None  # lost again, it is news
        if self._passing is None:
            return
        try:
            self._operator("the GPU can be read again").undo(self._passing)
        except JournalMoved:
            raise
        except (ActionRefused, EntryNotFound) as error:
            logger.warning("health: %s can be read again, and is left as it is: %s", self._key, error)
        else:
            logger.warning("health: %s can be read again, and is as it was before", self._key)
        self._passing = self._acted = None

    def _recognise(self) -> None:
        """Once: a worker that has started again gives back what it took before it ended."""
        if self._recognised:
            return
        taken = self._state()[1].startswith(_UNREADABLE)
        self._recognised = True
        for entry in self._ledger.journal(_RECENT) if taken else ():
            if entry.actor == self._actor and entry.args.get("target") == self._key and entry.state == DONE:
                if entry.reason.startswith(_UNREADABLE):
                    self._passing, self._acted = entry.number, _Trouble(entry.reason, passing=True)
                return

    def _end_tasks(self, lost: set[str]) -> None:
        for holding in self._holdings() if lost else ():
            if lost & _uuids(holding):
                self._lose(holding, "its GPU is lost")

    # --- the ledger

    @property
    def _ledger(self) -> Ledger:
        if self._own_ledger is None:
            self._own_ledger = self._connect()
        return self._own_ledger

    def _operator(self, reason: str) -> Operator:
        return Operator(self._ledger, Actor(self._actor, SOURCE, reason[:MAX_LABEL]), self._settle)

    def _state(self) -> tuple[str, str]:
        """State of the device in the ledger, and why it is so."""
        node, _, device_id = self._key.partition("/")
        found = self._ledger.node(node)
        told = [(one.state, one.reason) for one in (found.devices if found else ()) if one.device_id == device_id]
        return told[0] if told else ("", "")


def _uuids(holding: Holding) -> set[str]:
    allocation = holding.allocation
    return {uuid for uuid in (allocation.device_uuid, *(uuid for _, uuid in allocation.more_devices)) if uuid}


def _news(before: GpuHealth | None, now: GpuHealth) -> list[str]:
    """What has become wrong since the last look; at the first, what the driver asks for already."""
    told = [f"Xid {xid}: {FATAL[xid]}" for xid in now.xids or () if xid in FATAL]
    if now.recovery and (before is None or before.recovery != now.recovery):
        told.append(f"the driver asks for: {now.recovery}")
    if now.rows_failed and (before is None or not before.rows_failed):
        told.append("bad memory could not be remapped")
    grown = (now.ecc_uncorrected or 0) - ((before.ecc_uncorrected if before else now.ecc_uncorrected) or 0)
    if grown > 0:
        told.append(f"{grown} uncorrectable memory error{'s' if grown > 1 else ''}")
    return told
