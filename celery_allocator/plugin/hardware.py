"""What a worker knows of its device and its node, and does about it: four parts, put together for the keeper.

The meter measures; the watch judges what tasks use; the reconciler tells the ledger what is not to be promised; the
monitor drains a GPU that has failed. The keeper calls the methods here from its own thread, but for :meth:`begin`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_allocator.ledger import Grant, Ledger
from celery_allocator.operations import Effect
from celery_allocator.plugin.endings import Endings
from celery_allocator.plugin.found import Found
from celery_allocator.plugin.health import HealthMonitor
from celery_allocator.plugin.holdings import Holding, Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.pool import is_one_process
from celery_allocator.plugin.reconcile import Reconciler
from celery_allocator.plugin.report import Reporter
from celery_allocator.plugin.sampled import Sampled
from celery_allocator.plugin.watch import Watch
from celery_allocator.settings import Settings

#: Seconds a worker that begins waits for its first look at its device: a driver may hang.
_FIRST_LOOK_S = 5.0


class Hardware:
    """One worker's. Made before its pool forks.

    ``wake``: called when the keeper has something to tell. ``connect``: a ledger client of the monitor's own.
    ``settle``: publishes what an action of the monitor has brought about. ``lose``: ends a task on a lost GPU.
    """

    def __init__(
        self,
        settings: Settings,
        reporter: Reporter,
        holdings: Holdings,
        endings: Endings,
        *,
        wake: Callable[[], None],
        connect: Callable[[], Ledger],
        settle: Callable[[Effect], None],
        lose: Callable[[Holding, str], None],
    ) -> None:
        inventory, device_id = reporter.inventory, reporter.device_id
        device = inventory.device(device_id)
        self._holdings, self._endings = holdings, endings
        #: What children are told of samples.
        self.sampled = Sampled()
        #: Where children tell what they held when a task began.
        self.found = Found()
        has_gpu = device is not None and not device.simulated
        self.watch = Watch(settings, self._running, wake, has_gpu=has_gpu, found=self.found)
        self.meter = Meter(device, holdings.all, settings.measure_s, settings.reserve_ram_mb, watch=self.watch)
        self.meter.sampled = self.sampled
        self._reconciler = Reconciler(settings, self.meter, reporter, holdings)
        self._health = HealthMonitor(
            reporter.worker,
            f"{inventory.node}/{device_id}",
            device,
            settings.health_s,
            connect=connect,
            settle=settle,
            holdings=holdings.all,
            lose=lose,
        )

    def begin(self, pool: Any) -> None:
        """Begin to measure, and wait for the first look: what is not there is not to be offered."""
        self.watch.pool = pool
        self.meter.one_process = is_one_process(pool)
        self.meter.start()
        self.meter.wait_for_first(_FIRST_LOOK_S)

    def serve(self) -> None:
        """The worker is registered: its GPU may be drained from now on."""
        self._health.start()

    def close(self) -> None:
        """The worker leaves: it drains nothing any more. It goes on measuring, for what is killed until :meth:`end`."""
        self._health.stop()

    def end(self) -> None:
        """Measure no more."""
        self.meter.stop()

    def withhold_first(self, ledger: Ledger, incarnation: str) -> tuple[Grant, ...]:
        """Before the worker registers: nothing is to be granted on what is not there."""
        return self._reconciler.before_registering(ledger, incarnation)

    def after_look(self, ledger: Ledger, incarnation: str) -> tuple[Grant, ...]:
        """Tell what has changed since the look before."""
        return self._reconciler.after_look(ledger, incarnation)

    def at_beat(self, ledger: Ledger, incarnation: str) -> tuple[Grant, ...]:
        """Tell what is withheld; have an idle child replaced whose memory a task waits for."""
        grants = self._reconciler.at_beat(ledger, incarnation)
        if self._reconciler.leftover_blocks:
            self.watch.recycle()
        return grants

    def describe(self) -> dict[str, Any]:
        """What is withheld, as plain data."""
        return self._reconciler.describe()

    def _running(self) -> list[Holding]:
        """What has begun here and not ended."""
        return [held for held in self._holdings.all() if held.pid is not None and held.allocation not in self._endings]
