"""JSON schemas of what the tools answer when they succeed; ``reply`` and ``reading`` make the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_allocator.model import FIELDS, LABELS, OTHERS, SELDOM, State

_STATES = [state.value for state in State]
_TEXT, _NUMBER, _COUNT, _YES_NO = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
_TEXT_OR_NULL, _COUNT_OR_NULL = {"type": ["string", "null"]}, {"type": ["integer", "null"]}


def _object(properties: Mapping[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _list_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(schema)}


_LEFT = {"gpu_memory_mb": _COUNT, "cpu_cores": _COUNT, "ram_mb": _COUNT}
_RESOURCES = _or_null(
    _object(
        {
            "gpu_id": _TEXT_OR_NULL,
            "gpu_memory_mb": _COUNT,
            "cpu_cores": _list_of(_COUNT),
            "ram_mb": _COUNT,
            "gpu_ids": _list_of(_TEXT),
            "gpu_uuids": _list_of(_TEXT),
        },
        optional=("gpu_ids", "gpu_uuids"),
    )
)
_TOOK = _object({"took_ms": _NUMBER})

#: What is known of one allocation. ``token`` and ``resources`` only while it holds something.
ALLOCATION: dict[str, Any] = _object(
    {
        "success": _YES_NO,
        "allocation_id": _TEXT,
        "task_id": _TEXT,
        "resources": _RESOURCES,
        "queue_position": _COUNT,
        "estimated_start_time": _TEXT_OR_NULL,
        "metadata": _object({"allocation_time_ms": _NUMBER, "available_resources": _or_null(_object(_LEFT))}),
        "state": {"type": "string", "enum": _STATES},
        "task_type": _TEXT,
        "strategy": _TEXT,
        "node": _TEXT_OR_NULL,
        "gpu_uuid": _TEXT_OR_NULL,
        "token": _COUNT_OR_NULL,
        "expires_at": _TEXT_OR_NULL,
    }
)

_POOL = _object(
    {
        "name": _TEXT,
        "paused": _TEXT_OR_NULL,
        **dict.fromkeys(("running", "granted", "waiting", "delayed", "on_hold"), _COUNT),
    }
)
_DEVICE = _object(
    {
        "device": _TEXT,
        "state": _TEXT,
        "model": _TEXT_OR_NULL,
        **dict.fromkeys(
            ("gpu_memory_mb", "gpu_memory_free_mb", "cpu_cores_free", "ram_free_mb", "allocations"), _COUNT
        ),
        "worker": _TEXT_OR_NULL,
    }
)
_MINE = _object(
    {
        "allocation_id": _TEXT,
        "task_id": _TEXT,
        "state": {"type": "string", "enum": _STATES},
        "queue_position": _COUNT,
        "resources": _RESOURCES,
        "token": _COUNT_OR_NULL,
        "expires_at": _TEXT_OR_NULL,
    }
)
_OF_THE_POOL = {
    "success": _YES_NO,
    "pool": _POOL,
    "devices": _list_of(_DEVICE),
    "more": _YES_NO,
    "allocations": _list_of(_MINE),
    "metadata": _TOOK,
}

#: The pool, or one allocation. (Clients of protocol versions before 2026 want an object at the top, not a choice.)
STATUS: dict[str, Any] = {"type": "object", "anyOf": [_object(_OF_THE_POOL), ALLOCATION]}

_IN_LINE = _object(
    {
        "position": _COUNT,
        "allocation_id": _TEXT_OR_NULL,
        "task_id": _TEXT_OR_NULL,
        "task_type": _TEXT_OR_NULL,
        "requirements": _object(
            {
                **dict.fromkeys(FIELDS, _COUNT),
                **dict.fromkeys(LABELS, _TEXT),
                **{name: {"type": kind} for name, (_, kind) in OTHERS.items()},
            },
            optional=(*SELDOM, *LABELS, *OTHERS),
        ),
        "strategy": _TEXT,
        "submitted_at": _TEXT_OR_NULL,
        "estimated_start_time": _TEXT_OR_NULL,
    }
)

#: What waits. Ids and names are null where they are another tenant's.
QUEUE: dict[str, Any] = _object({"success": _YES_NO, "waiting": _list_of(_IN_LINE), "more": _YES_NO, "metadata": _TOOK})
