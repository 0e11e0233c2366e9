"""Why something waits though there may be room: its tenant's cap, what is kept for another, those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from celery_allocator.model import CAPS, Allocation, ClusterState, Requirements, TenantState
from celery_allocator.overview.outlook import Outlook
from celery_allocator.overview.reasons import Reason, fitting, why

#: How caps are named in a sentence.
_CAPPED = {"gpu_memory_mb": "MB of GPU memory", "cpu_cores": "CPU cores", "ram_mb": "MB of RAM", "tasks": "tasks"}
#: Devices that a sentence names.
_NAMED = 3


def why_waiting(allocation: Allocation, cluster: ClusterState, outlook: Outlook) -> Reason:
    """Why an allocation in line is not granted at this instant."""
    asked, kind = allocation.requirements, allocation.kind
    return in_turn(why(asked, kind, cluster), fitting(asked, kind, cluster), allocation, outlook)


def in_turn(room: Reason, fits: Sequence[str], allocation: Allocation, outlook: Outlook) -> Reason:
    """What holds one up besides room. ``room``: as :func:`why` says; ``fits``: the devices where it has room now."""
    if room.code not in ("room", "in_line"):
        return room
    # As in ``_pass.lua``: who is above its tenant's cap is not looked at any further.
    capped = _capped(allocation.requirements, outlook.tenant(allocation.requirements.tenant))
    if capped is not None or room.code == "room":
        return capped or room
    return _patient(allocation, outlook) or _kept(fits, allocation, outlook) or _behind(allocation) or room


def _capped(asked: Requirements, tenant: TenantState | None) -> Reason | None:
    """The first cap that it would be above: the rule of ``capped`` in ``_tenants.lua``."""
    if tenant is None or not tenant.name:
        return None
    takes = {
        "gpu_memory_mb": asked.gpu_memory_mb * asked.gpu_count,
        "cpu_cores": asked.cpu_cores,
        "ram_mb": asked.ram_mb,
        "tasks": 1,
    }
    for name in CAPS:
        cap, used = getattr(tenant.quota, name), getattr(tenant, name)
        if cap is not None and used + takes[name] > cap:
            more = f"; it needs {takes[name]}" if name != "tasks" else ""
            return Reason("cap", f"Its tenant {tenant.name} has {used} of at most {cap} {_CAPPED[name]}{more}.")
    return None


def _patient(allocation: Allocation, outlook: Outlook) -> Reason | None:
    patience = outlook.patience_of(allocation) if allocation.requirements.affinity else None
    if patience is None:
        return None
    where = (
        f"a {'GPU' if allocation.requirements.on_gpu else 'node'} where {allocation.requirements.affinity} is loaded"
    )
    left = max(1, math.ceil(patience.until - patience.at))
    return Reason("affinity", f"There is room for it; it waits up to {left} s for {where}.")


def _kept(fits: Sequence[str], allocation: Allocation, outlook: Outlook) -> Reason | None:
    """Where it has room on that node only on which something is kept for another."""
    kept = outlook.kept
    if kept is None or kept.device is None or not fits or outlook.kept_for(allocation) is not None:
        return None
    if {_node(device) for device in fits} != {_node(kept.device)}:
        return None
    other = f"{kept.holder.task_name} (task {kept.holder.task_id})"
    where = ", ".join(fits[:_NAMED]) + (f" and {len(fits) - _NAMED} more" if len(fits) > _NAMED else "")
    what = "that" if [*fits] == [kept.device] else kept.device
    return Reason("kept", f"There is room on {where}, and {what} is kept for {other}, which goes first.")


def _behind(allocation: Allocation) -> Reason | None:
    before = allocation.queue_position - 1
    if before < 1:
        return None
    others = "one that is" if before == 1 else f"{before} that are"
    return Reason("behind", f"There is room for it now; {others} before it in line may go first.")


def _node(device: str) -> str:
    return device.partition("/")[0]
