"""Whose allocations are whose: agents and other callers by name, each with a bound on how many live at once."""

from __future__ import annotations

from celery_allocator.errors import CapExceeded
from celery_allocator.ledger import wire
from celery_allocator.ledger.access import Access
from celery_allocator.model import Allocation, label


class Owning(Access):
    """The methods that know owners. An owner's name is printable text of up to 255 characters."""

    def own(self, owner: str, allocation_id: str, most: int | None = None) -> None:
        """Note that ``allocation_id``, which is about to be submitted, is ``owner``'s.

        ``most``: how many he may have alive at once, those in line included; counted and noted in one step, so that two
        calls cannot both take the last place. Raises :class:`CapExceeded`.
        """
        reply = self._run("own", label("owner", owner), allocation_id, "take", "" if most is None else most)
        if reply[0] == b"full":
            raise CapExceeded("allocations", int(reply[1]) + 1, int(most or 0))

    def disown(self, owner: str, allocation_id: str) -> None:
        """Forget it: it was not submitted."""
        self._run("own", label("owner", owner), allocation_id, "drop", "")

    @wire.reads("an allocation")
    def owned(self, owner: str) -> tuple[Allocation, ...]:
        """All live allocations of ``owner``, oldest first."""
        return tuple(wire.allocation(row) for row in self._run("owned", label("owner", owner), ""))

    def owns(self, owner: str, allocation_id: str) -> bool:
        """Whether that live allocation is ``owner``'s."""
        return bool(self._run("owned", label("owner", owner), allocation_id))
