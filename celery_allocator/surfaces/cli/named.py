"""What a command is about, by the id of an allocation or of a task."""

from __future__ import annotations

import click

from celery_allocator.errors import AllocationNotFound
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation

which_argument = click.argument("which", metavar="ALLOCATION_ID|TASK_ID")


def named(ledger: Ledger, which: str) -> tuple[Allocation, ...]:
    """The allocation of that id, else those of the task of that id. Raises :class:`AllocationNotFound`."""
    if not which.isprintable():
        raise AllocationNotFound("that is not an id of an allocation or a task")
    try:
        return (ledger.get(which),)
    except AllocationNotFound:
        found = ledger.find(which)
    if not found:
        raise AllocationNotFound(f"no live allocation or task {which!r}: it has ended or never was")
    return found
