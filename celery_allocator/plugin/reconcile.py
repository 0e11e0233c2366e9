"""Live reconcile: the ledger is told what is used beyond all claims, and takes it off what is free.

``plugin/beyond.py`` has the formula; docs/howto/shared-gpus.md says what it means.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import cores_now
from celery_allocator.ledger import Grant, Ledger
from celery_allocator.model import RamUse, Withheld
from celery_allocator.plugin.beyond import Beyond
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
from celery_allocator.plugin.report import Reporter
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: What is withheld has to change by so many MB to be told at once; smaller changes go with the next heartbeat.
_STEP_MB = 32
#: RAM has to change by so many MB to be told, or by this share of the node's, if that is more.
_RAM_STEP_MB, _RAM_STEP = 64, 0.01


class Reconciler:
    """Tells the ledger what one worker's looks have found. Used by the keeper's thread alone.

    It tells nothing of nodes with simulated devices, nor with ``allocator_reconcile`` off. Methods return what is
    granted by that, and raise :class:`~celery_allocator.errors.LedgerError`.
    """

    def __init__(self, settings: Settings, meter: Meter, reporter: Reporter, holdings: Holdings) -> None:
        self._settings = settings
        self._meter, self._reporter, self._holdings = meter, reporter, holdings
        self._found_at_first = reporter.inventory
        self._step = max(_RAM_STEP_MB, int(reporter.inventory.ram_mb * _RAM_STEP))
        self._looked: Beyond | None = None
        #: What was told last; ``None`` before that, and after the ledger may have forgotten it.
        self._gpu: Withheld | None = None
        self._ram: RamUse | None = None
        #: Something waits that would fit if the worker's processes without a task held no GPU memory.
        self.leftover_blocks = False
        self._hidden = False
        self._complaint = ""

    @property
    def active(self) -> bool:
        """Whether anything is reconciled here."""
        return self._settings.reconcile and not any(device.simulated for device in self._found_at_first.devices)

    def before_registering(self, ledger: Ledger, incarnation: str) -> tuple[Grant, ...]:
        """Nothing is to be granted on what is not there. The ledger may have forgotten all that it was told."""
        self._gpu = self._ram = None
        return self._tell(ledger, incarnation, registering=True)

    def after_look(self, ledger: Ledger, incarnation: str) -> tuple[Grant, ...]:
        """Tell what has changed, as soon as it was measured."""
        return () if self._meter.beyond is self._looked else self._tell(ledger, incarnation)

    def at_beat(self, ledger: Ledger, incarnation: str) -> tuple[Grant, ...]:
        """Tell once more what is withheld; and which cores there are, if these have changed.

        A claim by hand may have come or gone, or somebody wait for what is left over.
        """
        grants = self._tell(ledger, incarnation, again=True)
        # A solo pool pins its main process to the cores of its task.
        pinned = self._meter.one_process and self._holdings.all()
        if pinned or not self._cores_changed():
            return grants
        return grants + ledger.register_node(self._reporter.inventory, self._settings.lease_s)

    def describe(self) -> dict[str, Any]:
        """What was told last, as plain data: before the ledger has laid it against what others hold a claim on."""
        gpu, ram = self._gpu, self._ram
        return {
            "active": self.active,
            "gpu": None if gpu is None else asdict(gpu),
            "ram": None if ram is None else asdict(ram),
            "leftover_blocks": self.leftover_blocks,
        }

    def _tell(
        self, ledger: Ledger, incarnation: str, *, again: bool = False, registering: bool = False
    ) -> tuple[Grant, ...]:
        found = self._looked = self._meter.beyond
        if not self.active or found is None:
            return ()
        gpu = found.gpu
        self.leftover_blocks = self.leftover_blocks and gpu is not None
        ram = found.ram if self._settings.ram_mb is None else None
        if ram is not None and not self._ram_moved(ram):
            ram = None
        if ram is None and not self._gpu_moved(gpu, again=again):
            return ()
        device = f"{self._reporter.inventory.node}/{self._reporter.device_id}"
        told = ledger.withhold(self._reporter.worker, incarnation, device, gpu, ram, registering=registering)
        if told is None:  # another worker serves it, which registering will tell
            return ()
        self._gpu, self._ram = gpu or self._gpu, ram or self._ram
        self.leftover_blocks = told.leftover_blocks
        self._explain(gpu, device)
        return told.grants

    def _gpu_moved(self, gpu: Withheld | None, *, again: bool) -> bool:
        if gpu is None:
            return False
        if self._gpu is None or (again and (gpu.total_mb > 0 or gpu != self._gpu)):
            return True
        by_mb = abs(gpu.total_mb - self._gpu.total_mb)
        return by_mb >= _STEP_MB or (gpu.total_mb == 0) != (self._gpu.total_mb == 0)

    def _ram_moved(self, ram: RamUse) -> bool:
        if self._ram is None:
            return True
        told = self._ram
        changes = (ram.used_mb - ram.ours_mb - told.used_mb + told.ours_mb, ram.overuse_mb - told.overuse_mb)
        return any(abs(change) >= self._step for change in changes)

    def _explain(self, gpu: Withheld | None, device: str) -> None:
        if gpu is not None and gpu.pids_hidden and not self._hidden:
            logger.warning(
                "the driver's process ids mean nothing here (a container?): what is used of %s beyond its claims is "
                "withheld, whoever uses it",
                device,
            )
        self._hidden = gpu.pids_hidden if gpu is not None else self._hidden

    def _cores_changed(self) -> bool:
        """Whether the reporter's inventory has other cores now: a mask or a control group takes and gives them."""
        if not self.active:
            return False
        try:
            now = cores_now(self._settings)
        except SettingsError as error:
            if self._complaint != str(error):
                logger.error("%s: the node goes on with the cores that it had", error)  # noqa: TRY400
            self._complaint = str(error)
            return False
        self._complaint = ""
        if now == self._reporter.inventory.cpu_cores:
            return False
        logger.warning("%s offers cores %s from now on", self._reporter.inventory.node, ",".join(map(str, now)))
        near = {device.device_id: device.cpu_affinity for device in self._found_at_first.devices}
        devices = tuple(
            replace(device, cpu_affinity=tuple(core for core in near.get(device.device_id, ()) if core in now))
            for device in self._reporter.inventory.devices
        )
        self._reporter.inventory = replace(self._reporter.inventory, cpu_cores=now, devices=devices)
        return True
