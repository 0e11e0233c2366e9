"""A mirror of a ledger that is told of changes alone: what any follower can know, in as few lines as possible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery_allocator.ledger import Ledger
from celery_allocator.updates import Change


class Mirror:
    """``allocations``: state by id. ``nodes`` and ``devices``: what was told of each, by name."""

    def __init__(self) -> None:
        self.allocations: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.tenants: dict[str, dict[str, Any]] = {}

    def follow(self, changes: Iterable[Change]) -> Mirror:
        """Be told."""
        for change in changes:
            self._tell(change)
        return self

    def _tell(self, change: Change) -> None:
        told = {"allocation": self.allocations, "node": self.nodes, "device": self.devices}
        told |= {"setting": self.settings, "tenant": self.tenants}
        objects = told[change.object]
        fields = {key: value for key, value in change.fields.items() if key not in ("event", "at", "operated")}
        if change.op == "delete":
            objects.pop(change.id, None)
            return
        if "operated" in change.fields:  # what it brought about is told on its own
            return
        devices = fields.pop("devices", {}) if change.object == "node" else {}
        objects.setdefault(change.id, {}).update(fields)
        if change.object == "node" and ("state" in fields or "online" in fields):
            # What is told of a node holds for its devices, too.
            known = [name for name in self.devices if name.startswith(f"{change.id}/")]
            for name in known:
                self.devices[name].update({key: fields[key] for key in ("state", "online") if key in fields})
        for name, state in devices.items():
            self.devices.setdefault(f"{change.id}/{name}", {}).update(state)

    def content(self) -> dict[str, Any]:
        """States of everything, to be compared with :func:`truth`."""
        return {
            "nodes": {name: _state(node) for name, node in self.nodes.items()},
            "devices": {name: (_state(d), d.get("worker") or None) for name, d in self.devices.items()},
            "allocations": {
                name: (a["state"], a.get("device"), a.get("priority")) for name, a in self.allocations.items()
            },
            "paused": self.settings.get("granting", {}).get("paused", False),
            "quotas": {name: tenant["quota"] for name, tenant in self.tenants.items() if tenant["quota"]},
        }


def truth(ledger: Ledger) -> dict[str, Any]:
    """The same, as the ledger says."""
    state = ledger.snapshot()
    live = [a for read in (ledger.queue, ledger.delayed, ledger.on_hold, ledger.held) for a in read(limit=10_000)]
    return {
        "nodes": {node.node: node.state for node in state.nodes},
        "devices": {device.key: (device.state, device.worker) for device in state.devices},
        "allocations": {
            a.allocation_id: (a.state.value, f"{a.node}/{a.device_id}" if a.node else None, a.priority) for a in live
        },
        "paused": state.paused == "stopped",
        "quotas": {t.name: {**t.quota.as_dict(), "by": t.by} for t in ledger.tenants() if t.by},
    }


def _state(told: dict[str, Any]) -> str:
    return str(told["state"]) if told.get("online") else "offline"
