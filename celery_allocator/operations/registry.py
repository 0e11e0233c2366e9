"""Every command by the name of its action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from celery_allocator.errors import RequestError
from celery_allocator.operations.breaking import CloseBreaker, OpenBreaker
from celery_allocator.operations.commands import (
    Allocate,
    Cancel,
    Command,
    Cordon,
    Drain,
    Front,
    Hold,
    Pause,
    Priority,
    Release,
    Resume,
    Uncordon,
    Unhold,
)
from celery_allocator.operations.tenancy import ResetTenant, SetTenant

_ALL: tuple[type[Command], ...] = (
    *(Cordon, Drain, Uncordon, Pause, Resume),
    *(Priority, Front, Hold, Unhold, Cancel, Release, Allocate),
    *(OpenBreaker, CloseBreaker),
    *(SetTenant, ResetTenant),
)
#: Every command by the name of its action.
COMMANDS: dict[str, type[Command]] = {kind.action: kind for kind in _ALL}


def command(action: str, args: Mapping[str, Any]) -> Command:
    """A command from its name and plain values. Raises :class:`RequestError` naming what is unknown or missing."""
    kind = COMMANDS.get(action)
    if kind is None:
        raise RequestError(f"unknown action {action!r}; known are {', '.join(COMMANDS)}")
    names = [spec.name for spec in fields(kind)]
    if unknown := [str(key) for key in args if key not in names]:
        raise RequestError(f"{action} takes {', '.join(names) or 'nothing'}, not {', '.join(unknown)}")
    try:
        return kind(**args)
    except TypeError as error:
        raise RequestError(f"{action} needs {', '.join(names)}: {error}") from None
