"""What operators can change, as one short text: equal digests, equal ledgers."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, NodeState

#: Allocations per read.
_PAGE = 5000


def digest(ledger: Ledger) -> str:
    """SHA-256 over :func:`content` in canonical JSON."""
    text = json.dumps(content(ledger), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content(ledger: Ledger) -> dict[str, Any]:
    """Nodes and devices with states and what no claim holds, the line in its order, who holds what where, and quotas.

    Without tokens, times, workers' leases and what is withheld: those go on, whatever operators do.
    """
    state = ledger.snapshot()
    line = _all(partial(ledger.queue, by_turns=False))  # turns change by themselves
    others = [*_all(ledger.delayed), *_all(ledger.on_hold), *_all(ledger.held)]
    return {
        "stopped": state.paused == "stopped",
        "breakers": [[breaker.name, breaker.allows] for breaker in ledger.breakers() if breaker.allows is not None],
        "tenants": [[tenant.name, tenant.quota.as_dict(), tenant.by] for tenant in ledger.tenants() if tenant.by],
        "nodes": [_node(node) for node in state.nodes],
        "line": [allocation.allocation_id for allocation in line],
        "allocations": sorted((_allocation(a) for a in (*line, *others)), key=lambda row: str(row["id"])),
    }


def _node(node: NodeState) -> dict[str, Any]:
    return {
        "node": node.node,
        "state": node.state,
        "cores": node.cpu_cores_free,
        "ram_mb": node.ram_free_mb + node.ram_withheld_mb,
        "devices": [
            [d.device_id, d.state, d.memory_free_mb + d.withheld_mb, d.slots_free, d.allocations] for d in node.devices
        ],
    }


def _allocation(a: Allocation) -> dict[str, Any]:
    return {
        "id": a.allocation_id,
        "task": a.task_id,
        "name": a.task_name,
        "state": a.state.value,
        "requirements": a.requirements.as_dict(),
        "strategy": a.strategy.value,
        "device": [a.node, *(a.device_ids or (None,))],
        "cores": a.cpu_cores,
        "on_hold_by": a.on_hold_by,
        "losses": a.losses,
    }


def _all(read: Any) -> list[Allocation]:
    found: list[Allocation] = []
    while page := read(limit=_PAGE, offset=len(found)):
        found += page
    return found
