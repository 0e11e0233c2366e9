"""What a caller asks for, checked before anything is connected or changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_allocator.allocating.auto import Resolve
from celery_allocator.errors import RequirementsError
from celery_allocator.model import MAX_LABEL, Requirements, Strategy, known_strategy
from celery_allocator.model.task_types import asked
from celery_allocator.settings import Settings

#: Longest time span taken, in seconds (about 31 years); longer ones are typing mistakes.
LONGEST_S = 1e9
_LARGEST_TOKEN = 2**53


@dataclass(frozen=True)
class Request:
    """One request by hand. ``wait_s``: how long to wait for room; ``ttl_s``: life without renewal. Both in seconds."""

    task_id: str
    task_type: str
    requirements: Requirements
    strategy: Strategy
    wait_s: float
    ttl_s: float


def parse(
    settings: Settings,
    task_id: Any,
    task_type: Any,
    resource_requirements: Any,
    allocation_strategy: Any,
    wait_s: Any,
    ttl_s: Any,
    resolve: Resolve,
) -> Request:
    """Check every argument; ``resolve`` finds out what says ``auto``.

    Raises :class:`~celery_allocator.errors.RequirementsError` naming the first bad one.
    """
    return Request(
        task_id=name("task_id", task_id),
        task_type=task_type,
        requirements=_requirements(settings, task_type, resource_requirements, resolve),
        strategy=_strategy(settings, allocation_strategy),
        wait_s=seconds("wait_s", wait_s, least=0),
        ttl_s=settings.ttl_s if ttl_s is None else time_to_live(ttl_s),
    )


def name(key: str, value: Any) -> str:
    """A task's or allocation's id: printable text of 1 to 255 characters, not all of them spaces."""
    if not isinstance(value, str):
        raise RequirementsError(key, value, f"must be text, not {type(value).__name__}")
    if not value.strip() or not value.isprintable() or len(value) > MAX_LABEL:
        raise RequirementsError(key, value, f"must be 1 to {MAX_LABEL} printable characters")
    return value


def token(value: Any) -> int | None:
    """The token of a grant, or ``None`` for whichever is live."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_TOKEN:
        raise RequirementsError("token", value, "must be the whole number that the grant carried")
    return value


def count(key: str, value: Any, *, most: int) -> int:
    """A whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RequirementsError(key, value, f"must be a whole number from 1 to {most}")
    return value


def time_to_live(value: Any) -> float:
    """A TTL in seconds: at least a millisecond, the ledger's resolution."""
    return seconds("ttl_s", value, least=0.001)


def seconds(key: str, value: Any, *, least: float) -> float:
    """A finite number of seconds from ``least`` up."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequirementsError(key, value, f"must be a number of seconds, not {type(value).__name__}")
    if not least <= value <= LONGEST_S:  # true of NaN too
        raise RequirementsError(key, value, f"must be from {least:g} to {LONGEST_S:g} seconds")
    return float(value)


def _requirements(settings: Settings, task_type: Any, given: Any, resolve: Resolve) -> Requirements:
    if given is not None and not isinstance(given, Mapping):
        raise RequirementsError(
            "resource_requirements", given, "must be a mapping such as {'gpu_memory_mb': 2048, 'cpu_cores': 2}"
        )
    return Requirements(**resolve(task_type, asked(task_type, given, settings.task_types)))


def _strategy(settings: Settings, value: Any) -> Strategy:
    try:
        return known_strategy(value, settings.strategies)
    except ValueError as error:
        raise RequirementsError("allocation_strategy", value, str(error)) from None
