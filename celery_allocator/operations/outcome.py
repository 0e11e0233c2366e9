"""What became of one of several actions."""

from __future__ import annotations

from dataclasses import dataclass

from celery_allocator.errors import AllocatorError
from celery_allocator.operations.effect import Effect


@dataclass(frozen=True)
class Outcome:
    """``about``: the id of the allocation (or the name of the node, …) or, of an undo or redo, what the entry was.

    Either ``effect`` or ``error`` is there.
    """

    about: str
    effect: Effect | None = None
    error: AllocatorError | None = None

    @property
    def done(self) -> bool:
        """Whether the action was taken."""
        return self.effect is not None

    @property
    def entry(self) -> int | None:
        """Its number in the journal, if it was taken."""
        return None if self.effect is None else self.effect.entry
