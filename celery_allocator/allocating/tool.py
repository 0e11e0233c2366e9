"""The agent executor: the function form as a tool call, behind a permission, with a JSON schema.

The schema, the parameters taken and the function's signature are one: the signature of :func:`allocate_resources` gives
names, types and defaults, :data:`~celery_allocator.model.FIELDS` the requirements and their bounds.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from celery_allocator.allocating import reply
from celery_allocator.allocating.function import allocate_resources
from celery_allocator.allocating.session import Session, default_session
from celery_allocator.errors import AllocatorError, PermissionDenied, RequestError
from celery_allocator.model import FIELDS, MAX_LABEL, TASK_TYPES, TENANT, TENANT_DOC, Strategy

TOOL = "resource_allocator"
#: Permission that a caller must hold.
PERMISSION = "runtime:control"

_DOCS = {
    "task_id": "Name of the work that the resources are for, chosen by the caller.",
    "task_type": "Kind of work; gives the default requirements.",
    "resource_requirements": "What is needed, laid over the task type's defaults.",
    "allocation_strategy": "How the device is picked: first_fit (the first that fits), best_fit (the one with "
    "least left over), priority (best fit, strictly by priority, then arrival).",
    "wait_s": "Seconds to wait for room. What still waits then stays in line, and the reply tells its position.",
    "ttl_s": "Seconds until the allocation ends by itself; null: the configured default.",
}
_JSON_TYPES = {str: "string", float: "number", int: "integer", type(None): "null"}


def execute(
    request: Mapping[str, Any], permissions: Iterable[str] = (), *, session: Session | None = None
) -> dict[str, Any]:
    """Run ``{"tool": "resource_allocator", "params": {…}}`` for a caller who holds ``permissions``.

    The reply is that of :func:`allocate_resources`. Without the permission ``runtime:control``, and for any other form
    of request, it is a refusal and nothing has happened.
    """
    try:
        _permit(permissions)
        params = _params(request)
    except AllocatorError as error:
        return reply.refusal(error, 0.0)
    return allocate_resources(**params, session=session)


def tool_schema(session: Session | None = None) -> dict[str, Any]:
    """Name, description and the JSON schema of the parameters, as agent frameworks take them."""
    settings = (session if session is not None else default_session()).settings
    hints = get_type_hints(allocate_resources)
    properties = {}
    for parameter in _parameters():
        schema = _schema_of(hints[parameter.name]) | {"description": _DOCS[parameter.name]}
        if parameter.default is not inspect.Parameter.empty:
            schema["default"] = parameter.default
        properties[parameter.name] = schema
    properties["task_id"] |= {"minLength": 1, "maxLength": MAX_LABEL}
    properties["task_type"]["enum"] = list({**TASK_TYPES, **settings.task_types})
    properties["allocation_strategy"]["enum"] = [strategy.value for strategy in Strategy]
    properties["resource_requirements"] |= {
        "properties": {
            field.name: {
                "type": "integer",
                "minimum": field.minimum,
                "maximum": field.maximum,
                "description": field.doc + (f" Unit: {field.unit}." if field.unit else ""),
            }
            for field in FIELDS.values()
        }
        | {TENANT: {"type": "string", "maxLength": MAX_LABEL, "description": TENANT_DOC}},
        "additionalProperties": False,
    }
    properties["wait_s"]["minimum"] = 0
    properties["ttl_s"]["exclusiveMinimum"] = 0
    required = [parameter.name for parameter in _parameters() if parameter.default is inspect.Parameter.empty]
    return {
        "name": TOOL,
        "description": "Allocate GPU memory, CPU cores and RAM for a piece of work; answers with a grant, or with the "
        "place in line and when it may start.",
        "permission": PERMISSION,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
    }


def _parameters() -> list[inspect.Parameter]:
    """What a request may say: every parameter of the function but ``session``."""
    return [p for p in inspect.signature(allocate_resources).parameters.values() if p.name != "session"]


def _permit(permissions: Iterable[str]) -> None:
    # Text would be searched for a part of itself, and a mapping by its keys: neither is a set of permissions.
    well_formed = isinstance(permissions, Iterable) and not isinstance(permissions, (str, bytes, Mapping))
    if not well_formed or not any(permission == PERMISSION for permission in permissions):
        raise PermissionDenied(f"the tool {TOOL} needs the permission {PERMISSION!r}")


def _params(request: Any) -> dict[str, Any]:
    if not isinstance(request, Mapping):
        raise RequestError(f"a request is {{'tool': {TOOL!r}, 'params': {{…}}}}, not {type(request).__name__}")
    if unknown := [str(key) for key in request if key not in ("tool", "params")]:
        raise RequestError(f"unknown in the request: {', '.join(unknown)}; it has 'tool' and 'params'")
    if request.get("tool") != TOOL:
        raise RequestError(f"unknown tool {request.get('tool')!r}: this executes {TOOL!r} only")
    params = request.get("params")
    if not isinstance(params, Mapping):
        raise RequestError(f"'params' must be a mapping, not {type(params).__name__}")
    known = {parameter.name: parameter for parameter in _parameters()}
    if unknown := [str(key) for key in params if key not in known]:
        raise RequestError(f"unknown parameter {', '.join(unknown)}; known are {', '.join(known)}")
    for parameter in known.values():
        if parameter.default is inspect.Parameter.empty and parameter.name not in params:
            raise RequestError(f"parameter {parameter.name!r} is missing")
    return dict(params)


def _schema_of(hint: Any) -> dict[str, Any]:
    """JSON schema of one annotation: plain types, mappings, and unions of them with ``None``."""
    kinds = [
        _JSON_TYPES.get(kind, "object") for kind in (getattr(hint, "__args__", ()) if _is_union(hint) else (hint,))
    ]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def _is_union(hint: Any) -> bool:
    return type(None) in getattr(hint, "__args__", ())
