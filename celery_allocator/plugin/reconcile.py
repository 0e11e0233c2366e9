"""Live reconcile: what is used beyond all claims, told to the ledger, which takes it off what is free.

With T what can be had of a device, claims cᵢ, what their tasks really use uᵢ, foreign use f, and what the worker's
processes without a task still hold l, the ledger has T − Σcᵢ free, and the driver T − f − l − Σuᵢ. Of the latter,
Σmax(0, cᵢ − uᵢ) is granted and not used yet. So what is usable is

    min(T − Σcᵢ, T − f − l − Σuᵢ − Σmax(0, cᵢ − uᵢ)) = T − Σcᵢ − (f + l + Σmax(0, uᵢ − cᵢ))

and the last bracket is what is withheld. It does not depend on claims that are not used, so it does no harm that it is
measured some seconds after a grant. Where the driver's process ids mean nothing, uᵢ are taken for as large as they may
be within the claims: max(0, used − Σcᵢ) is withheld. The same for the RAM of a node, without l: what a child has not
given back it uses again for its next task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import cores_now
from celery_allocator.ledger import Grant, Ledger
from celery_allocator.model import Allocation, NodeInventory, RamUse, Withheld, WorkerUse
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: Foreign use up to so many MB is the driver's bookkeeping of contexts: 6 to 8 MB per process (docs/internals/gpus.md).
BOOKKEEPING_MB = 64
#: RAM has to change by so many MB to be told, or by this share of the node's, if that is more.
_RAM_STEP_MB, _RAM_STEP = 64, 0.01


@dataclass(frozen=True)
class Beyond:
    """What one look has found to be used beyond claims. ``None``: it could not be measured."""

    gpu: Withheld | None = None
    ram: RamUse | None = None


def beyond(
    use: WorkerUse,
    claims: Iterable[Allocation],
    *,
    one_process: bool = False,
    reserved_ram_mb: int = 0,
    shared_ram_mb: int = 0,
    processes: int = 1,
) -> Beyond:
    """Work out what is used beyond ``claims``, all that the worker's tasks hold, begun or not.

    ``one_process``: tasks run in the worker's main process (a pool of threads, or solo), so whose memory is whose
    cannot be told, and what is left in it is used again. ``shared_ram_mb``: resident memory of the main process, which
    its children share; each of the ``processes`` counts it as its own.
    """
    held = {claim.allocation_id: claim for claim in claims}
    return Beyond(_gpu(use, held, one_process), _ram(use, held, one_process, reserved_ram_mb, shared_ram_mb, processes))


def _gpu(use: WorkerUse, held: dict[str, Allocation], one_process: bool) -> Withheld | None:
    used, ours = use.gpu_memory_used_mb, use.gpu_memory_ours_mb
    if used is None:
        return None
    claimed = sum(claim.gpu_memory_mb for claim in held.values())
    if ours is None:
        return Withheld(_foreign(used - claimed), pids_hidden=True)
    if one_process:
        return Withheld(_foreign(used - ours), 0, max(0, ours - claimed) if held else 0)
    of_tasks = [(task.gpu_memory_mb or 0, held.get(task.allocation_id)) for task in use.tasks]
    over = sum(max(0, amount - (claim.gpu_memory_mb if claim else 0)) for amount, claim in of_tasks)
    return Withheld(_foreign(used - ours), max(0, ours - sum(amount for amount, _ in of_tasks)), over)


def _foreign(amount: int) -> int:
    return amount if amount > BOOKKEEPING_MB else 0


def _ram(
    use: WorkerUse, held: dict[str, Allocation], one_process: bool, reserved: int, shared: int, processes: int
) -> RamUse | None:
    used, ours = use.ram_used_mb, use.ram_ours_mb
    if used is None or ours is None:
        return None
    ours = max(min(ours, shared), ours - shared * (processes - 1))
    if one_process:
        over = max(0, ours - sum(claim.ram_mb for claim in held.values())) if held else 0
    else:
        of_tasks = [((task.ram_mb or 0) - shared, held.get(task.allocation_id)) for task in use.tasks]
        over = sum(max(0, amount - (claim.ram_mb if claim else 0)) for amount, claim in of_tasks)
    return RamUse(max(0, used - reserved), ours, over)


class Reconciler:
    """Tells the ledger what one worker's looks have found. Used by the keeper's thread alone.

    It is not made for simulated devices, and with ``allocator_reconcile`` off it tells nothing.
    """

    def __init__(self, settings: Settings, worker: str, inventory: NodeInventory, device_id: str) -> None:
        self._settings = settings
        self._worker = worker
        self._found_at_first = self._inventory = inventory
        self._device = f"{inventory.node}/{device_id}"
        self._step = max(_RAM_STEP_MB, int(inventory.ram_mb * _RAM_STEP))
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

    def describe(self) -> dict[str, Any]:
        """What was told last, as plain data: before the ledger has laid it against what others hold a claim on."""
        gpu, ram = self._gpu, self._ram
        return {
            "active": self.active,
            "gpu": None if gpu is None else asdict(gpu),
            "ram": None if ram is None else asdict(ram),
            "leftover_blocks": self.leftover_blocks,
        }

    def tell(
        self, ledger: Ledger, incarnation: str, found: Beyond | None, *, registering: bool = False
    ) -> tuple[Grant, ...]:
        """Tell what was found, if it has changed or if it matters who else holds a claim; returns what is granted.

        ``registering``: the worker is about to register, and the ledger may have forgotten all that it was told.
        Raises :class:`~celery_allocator.errors.LedgerError`.
        """
        if not self.active or found is None:
            return ()
        ram = found.ram if self._settings.ram_mb is None else None
        if registering:
            self._gpu = self._ram = None
        if ram is not None and not self._moved(ram):
            ram = None
        if ram is None and not self._matters(found.gpu):
            self.leftover_blocks = False
            return ()
        told = ledger.withhold(self._worker, incarnation, self._device, found.gpu, ram, registering=registering)
        if told is None:  # another worker serves it, which registering will tell
            return ()
        self._gpu, self._ram = found.gpu or self._gpu, ram or self._ram
        self.leftover_blocks = told.leftover_blocks
        self._explain(found.gpu)
        return told.grants

    def _matters(self, gpu: Withheld | None) -> bool:
        """Also what has not changed: a claim by hand may have come or gone, or somebody wait for what is left over."""
        return gpu is not None and (gpu.total_mb > 0 or gpu != self._gpu)

    def _moved(self, ram: RamUse) -> bool:
        if self._ram is None:
            return True
        told = self._ram
        changes = (ram.used_mb - ram.ours_mb - told.used_mb + told.ours_mb, ram.overuse_mb - told.overuse_mb)
        return any(abs(change) >= self._step for change in changes)

    def _explain(self, gpu: Withheld | None) -> None:
        if gpu is not None and gpu.pids_hidden and not self._hidden:
            logger.warning(
                "the driver's process ids mean nothing here (a container?): what is used of %s beyond its claims is "
                "withheld, whoever uses it",
                self._device,
            )
        self._hidden = gpu.pids_hidden if gpu is not None else self._hidden

    def cores(self) -> NodeInventory | None:
        """The node with the cores that this process may use by now; ``None`` while these are the same.

        A mask or a control group may take cores away, or give them back, while the worker runs.
        """
        try:
            now = cores_now(self._settings)
        except SettingsError as error:
            if self._complaint != str(error):
                logger.error("%s: the node goes on with the cores that it had", error)  # noqa: TRY400
            self._complaint = str(error)
            return None
        self._complaint = ""
        if not self.active or now == self._inventory.cpu_cores:
            return None
        logger.warning("%s offers cores %s from now on", self._inventory.node, ",".join(map(str, now)))
        devices = tuple(
            replace(device, cpu_affinity=tuple(core for core in device.cpu_affinity if core in now))
            for device in self._found_at_first.devices
        )
        self._inventory = replace(self._inventory, cpu_cores=now, devices=devices)
        return self._inventory
