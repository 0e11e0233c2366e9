"""What a command is about, by the id of an allocation or of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from celery_allocator.errors import AllocationNotFound
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation
from celery_allocator.surfaces.cli.completing import Complete

F = TypeVar("F", bound=Callable[..., Any])


def which_argument(complete: Complete) -> Callable[[F], F]:
    """Add the argument ``which``. ``complete``: the ids that a shell offers for it."""
    return click.argument("which", metavar="ALLOCATION_ID|TASK_ID", shell_complete=complete)


def named(ledger: Ledger, which: str) -> tuple[Allocation, ...]:
    """The allocation of that id, else those of the task of that id. Raises :class:`AllocationNotFound`."""
    if not which.isprintable():
        raise AllocationNotFound("that is not an id of an allocation or a task")
    return ledger.named(which)
