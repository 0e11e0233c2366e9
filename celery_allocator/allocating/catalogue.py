"""The tools that agents get, each in one place: its function, the permission it needs, and what its words mean.

Names, types and defaults of the parameters are those of the function's signature; requirements and their bounds come
from :data:`~celery_allocator.model.FIELDS`. From these :mod:`~celery_allocator.allocating.schema` makes every schema.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery_allocator.allocating import answers
from celery_allocator.allocating.function import allocate_resources, release_resources
from celery_allocator.allocating.reading import pool_queue, pool_status
from celery_allocator.errors import RequestError

#: Permissions: to look, and to change what runs.
READ, CONTROL = "allocator:read", "runtime:control"


@dataclass(frozen=True)
class Tool:
    """One tool. ``answer``: the JSON schema of what it answers when it succeeds; ``ends``: it may end something."""

    name: str
    function: Callable[..., dict[str, Any]]
    permission: str
    title: str
    description: str
    answer: Mapping[str, Any]
    ends: bool = False

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return self.permission != READ

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """What a call may say: every parameter of the function but ``session``."""
        return [p for p in inspect.signature(self.function).parameters.values() if p.name != "session"]

    @property
    def required(self) -> list[str]:
        """What a call must say."""
        return [p.name for p in self.parameters if p.default is inspect.Parameter.empty]

    def checked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a call, if it knows all of them and has those it must have.

        Their values are the function's to judge. Raises :class:`~celery_allocator.errors.RequestError`.
        """
        known = [parameter.name for parameter in self.parameters]
        if unknown := [str(key) for key in params if key not in known]:
            raise RequestError(f"unknown parameter {', '.join(unknown)}; known are {', '.join(known)}")
        for name in self.required:
            if name not in params:
                raise RequestError(f"parameter {name!r} is missing")
        return dict(params)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "resource_allocator",
            allocate_resources,
            CONTROL,
            "Allocate",
            "Allocate GPU memory, CPU cores and RAM for a piece of work; answers with a grant, or with the "
            "place in line and when it may start.",
            answers.ALLOCATION,
        ),
        Tool(
            "release",
            release_resources,
            CONTROL,
            "Release",
            "Give back what an allocation holds, or take it out of line. Do so as soon as the work is done.",
            answers.ALLOCATION,
            ends=True,
        ),
        Tool(
            "status",
            pool_status,
            READ,
            "Status",
            "With an allocation_id: that allocation, whether it waits or holds something. Without: the pool, its "
            "devices with what is free on them, and your own allocations.",
            answers.STATUS,
        ),
        Tool("queue", pool_queue, READ, "Queue", "What waits for room, in its order.", answers.QUEUE),
    )
}

#: What the parameters mean, by their names, which mean the same in every tool.
MEANINGS = {
    "task_id": "Name of the work that the resources are for, chosen by the caller.",
    "task_type": "Kind of work; gives the default requirements.",
    "resource_requirements": "What is needed, laid over the task type's defaults.",
    "allocation_strategy": "How the device is picked: first_fit (the first that fits), best_fit (the one with "
    "least left over), priority (best fit, strictly by priority, then arrival).",
    "wait_s": "Seconds to wait for room. What still waits then stays in line, and the reply tells its position.",
    "ttl_s": "Seconds until the allocation ends by itself; null: the configured default.",
    "allocation_id": "Id of an allocation, from the reply that made it.",
    "token": "The token that the grant carried: act only if the allocation still is that grant. null: whichever it is.",
    "limit": "List at most so many.",
}
