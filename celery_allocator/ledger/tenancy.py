"""The ledger's tenants: what they hold, what their turns are worth, and what they may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from celery_allocator.errors import RequirementsError
from celery_allocator.ledger import journal, replies, wire
from celery_allocator.ledger.journal import Note, Operated
from celery_allocator.ledger.operating import Operating
from celery_allocator.model import Quota, TenantState
from celery_allocator.model.tenant import check_tenant


class Tenancy(Operating):
    """The methods about tenants."""

    @wire.reads("a tenant")
    def tenants(self) -> tuple[TenantState, ...]:
        """Tenants that hold something, wait, or have a quota, in alphabetical order."""
        _gpu, _cores, _ram, rows = self._run("tenants")
        return tuple(_state(row) for row in rows)

    def set_tenant(
        self, name: str, quota: Quota | None, *, publishes: bool = True, note: Note | None = None
    ) -> Operated:
        """Give a tenant a weight and caps, or (``None``) take them from it. What it holds already stays.

        ``was`` and ``becomes`` of the reply are the quota's JSON, empty for none. Raises :class:`LabelError` for what
        is no tenant's name, :class:`RequirementsError` for caps on those that name none.
        """
        return self._set_quota(name, _packed(quota, "operator"), publishes, note)

    def restore_tenant(self, name: str, packed: str, *, publishes: bool = True, note: Note | None = None) -> Operated:
        """Give a tenant back the quota that a reply of :meth:`set_tenant` told, as its JSON."""
        return self._set_quota(name, packed, publishes, note)

    def load_tenants(self, quotas: Mapping[str, Quota], *, publishes: bool = True) -> tuple[replies.Grant, ...]:
        """Give tenants the quotas of the settings. What an operator has said of one stays."""
        grants: list[replies.Grant] = []
        for name, quota in quotas.items():
            check_tenant(name, quota)
            reply = self._run("tenant", name, _packed(quota, "settings"), "1" if publishes else "0", "", "1")
            if reply[0] == b"ok":
                grants += replies.grants(reply[2])
        return tuple(grants)

    def _set_quota(self, name: str, packed: str, publishes: bool, note: Note | None) -> Operated:
        check_tenant(name, _quota(packed)[0])
        reply = self._noted(note, "tenant", name, packed, "1" if publishes else "0", self._pack(note), "0")
        _, was, grants, entry = reply
        return Operated(journal.number(entry), replies.grants(grants), was.decode(), packed)


def _packed(quota: Quota | None, by: str) -> str:
    return "" if quota is None else json.dumps({**quota.as_dict(), "by": by}, sort_keys=True)


def _quota(packed: str | bytes) -> tuple[Quota, str]:
    """A quota and who set it. What cannot be read counts as none, as in ``_tenants.lua``."""
    try:
        told: Any = json.loads(packed or "{}")
        by = told.pop("by", "")
        return Quota.parse(told), str(by)
    except (ValueError, AttributeError, RequirementsError):
        return Quota(), ""


def _state(row: list[Any]) -> TenantState:
    name, packed, gpu, cores, ram, tasks, share, waiting = row
    quota, by = _quota(packed)
    amounts = (int(gpu), int(cores), int(ram), int(tasks))
    return TenantState(name.decode(), quota, by, *amounts, float(share), int(waiting))
