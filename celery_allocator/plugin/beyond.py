"""What is used beyond all claims, worked out of one look of the meter.

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

from collections.abc import Iterable
from dataclasses import dataclass

from celery_allocator.model import Allocation, RamUse, Withheld, WorkerUse

#: Foreign use up to so many MB is the driver's bookkeeping of contexts: 6 to 8 MB per process (docs/internals/gpus.md).
BOOKKEEPING_MB = 64


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
