"""Who calls, and what he may do."""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_allocator.allocating import Owner
from celery_allocator.allocating.catalogue import CONTROL, READ, Tool
from celery_allocator.model import Allocation
from celery_allocator.operations import Actor
from celery_allocator.surfaces.mcp.caps import Caps

#: What a token may be allowed.
SCOPES = (READ, CONTROL)


@dataclass(frozen=True)
class Caller:
    """A token, or whoever started the server on stdio or calls it on this host without one.

    ``owner``: under which name what he allocates is kept. ``tenant``: he always gets exactly this one; ``None``: any
    that he names. ``any``: he may see and release what others allocated.
    """

    name: str
    owner: str
    scopes: frozenset[str]
    tenant: str | None = ""
    any: bool = False
    caps: Caps = field(default_factory=Caps)

    @classmethod
    def local(cls, *, control: bool) -> Caller:
        """This process's user, who needs no token: reads, and with ``control`` allocates and releases his own."""
        user = Actor.of_process("mcp").name
        return cls(user, f"local:{user}", frozenset(SCOPES if control else (READ,)), tenant=None)

    def actor(self, reason: str = "") -> Actor:
        """In whose name the journal keeps what he changes."""
        return Actor(self.name, "mcp", reason)

    def as_owner(self) -> Owner:
        """As the ledger counts what he owns."""
        return Owner(self.owner, self.caps.allocations)

    def may(self, tool: Tool) -> bool:
        """Whether he may use that tool at all."""
        return tool.permission in self.scopes

    def shares(self, tenant: str) -> bool:
        """Whether that is his tenant."""
        return bool(tenant) and tenant == self.tenant

    @property
    def sees_all(self) -> bool:
        """Whether ids and names of everybody's work are his to see: not where he stands for one tenant of several."""
        return self.any or not self.tenant

    def sees(self, allocation: Allocation) -> bool:
        """Whether he may know of an allocation that is not his own."""
        return self.sees_all or self.shares(allocation.requirements.tenant)
