"""Task types of the function form: names that stand for requirements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_allocator.errors import RequirementsError
from celery_allocator.model.requirements import Requirements, merge

#: Shipped types. Starting points, meant to be overridden per request or by the setting ``allocator_task_types``.
TASK_TYPES: Mapping[str, Mapping[str, int]] = {
    "ml_inference": {"gpu_memory_mb": 2048, "cpu_cores": 2, "ram_mb": 4096},
    "rendering": {"gpu_memory_mb": 4096, "cpu_cores": 4, "ram_mb": 8192},
    "processing": {"gpu_memory_mb": 0, "cpu_cores": 2, "ram_mb": 2048},
}


def asked(
    task_type: str,
    requirements: Mapping[str, Any] | None = None,
    extra_types: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """What a task type asks for, with ``requirements`` merged over its defaults; values are not checked yet.

    Raises :class:`RequirementsError` for a type that is neither shipped nor in ``extra_types``.
    """
    known = {**TASK_TYPES, **(extra_types or {})}
    if not isinstance(task_type, str) or task_type not in known:
        raise RequirementsError(
            "task_type", task_type, f"unknown task type; known are {', '.join(known)} (setting allocator_task_types)"
        )
    return merge(known[task_type], requirements)


def resolve(
    task_type: str,
    requirements: Mapping[str, Any] | None = None,
    extra_types: Mapping[str, Mapping[str, Any]] | None = None,
) -> Requirements:
    """The same, checked."""
    return Requirements(**asked(task_type, requirements, extra_types))
