"""JSON schemas of the tools' parameters, and the forms in which agent frameworks take them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from celery_allocator.allocating.auto import AUTO, CAN_BE_AUTO
from celery_allocator.allocating.catalogue import MEANINGS, TOOLS, Tool
from celery_allocator.allocating.reading import MOST_LISTED
from celery_allocator.allocating.session import Session, default_session
from celery_allocator.errors import RequestError
from celery_allocator.model import FIELDS, LABELS, MAX_LABEL, OTHERS, TASK_TYPES, Strategy
from celery_allocator.settings import Settings

#: Of the texts, this one alone.
_PATTERN = f"^{AUTO}$"
_JSON_TYPES = {str: "string", float: "number", int: "integer", type(None): "null"}


def parameters(tool: Tool, settings: Settings) -> dict[str, Any]:
    """The JSON schema of a tool's parameters. The task types are those of ``settings``."""
    hints = get_type_hints(tool.function)
    properties: dict[str, dict[str, Any]] = {}
    for parameter in tool.parameters:
        schema = _schema_of(hints[parameter.name]) | {"description": MEANINGS[parameter.name]}
        schema |= _bounds(parameter.name, settings)
        if parameter.default is not inspect.Parameter.empty:
            schema["default"] = parameter.default
        properties[parameter.name] = schema
    return {"type": "object", "properties": properties, "required": tool.required, "additionalProperties": False}


def _bounds(name: str, settings: Settings) -> dict[str, Any]:
    bounds: dict[str, dict[str, Any]] = {
        "task_id": {"minLength": 1, "maxLength": MAX_LABEL},
        "task_type": {"enum": list({**TASK_TYPES, **settings.task_types})},
        "allocation_strategy": {"enum": [*(strategy.value for strategy in Strategy), *settings.strategies]},
        "resource_requirements": _requirements(),
        "wait_s": {"minimum": 0},
        "ttl_s": {"exclusiveMinimum": 0},
        "allocation_id": {"minLength": 1, "maxLength": MAX_LABEL},
        "token": {"minimum": 0},
        "limit": {"minimum": 1, "maximum": MOST_LISTED},
    }
    return bounds[name]


def _requirements() -> dict[str, Any]:
    numbers = {
        field.name: {
            "type": ["integer", "string"] if field.name in CAN_BE_AUTO else "integer",
            "minimum": field.minimum,
            "maximum": field.maximum,
            "description": field.doc + (f" Unit: {field.unit}." if field.unit else "") + _auto(field.name),
            **({"pattern": _PATTERN} if field.name in CAN_BE_AUTO else {}),
        }
        for field in FIELDS.values()
    }
    texts = {name: {"type": "string", "maxLength": MAX_LABEL, "description": doc} for name, doc in LABELS.items()}
    others = {name: {"type": kind, "description": doc} for name, (doc, kind) in OTHERS.items()}
    return {"properties": {**numbers, **texts, **others}, "additionalProperties": False}


def _auto(name: str) -> str:
    return f" '{AUTO}': as much as earlier runs used." if name in CAN_BE_AUTO else ""


def _openai(tool: Tool, settings: Settings) -> dict[str, Any]:
    return {"type": "function", "function": _function(tool, settings)}


def _openai_responses(tool: Tool, settings: Settings) -> dict[str, Any]:
    return {"type": "function", **_function(tool, settings), "strict": False}


def _function(tool: Tool, settings: Settings) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": parameters(tool, settings)}


def _mcp(tool: Tool, settings: Settings) -> dict[str, Any]:
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "inputSchema": parameters(tool, settings),
        "outputSchema": copy.deepcopy(dict(tool.answer)),
        "annotations": {
            "title": tool.title,
            "readOnlyHint": not tool.changes,
            "destructiveHint": tool.ends,
            "idempotentHint": tool.ends or not tool.changes,
            "openWorldHint": False,
        },
        "_meta": {"celery-allocator/permission": tool.permission},
    }


def _json_schema(tool: Tool, settings: Settings) -> dict[str, Any]:
    schema = parameters(tool, settings)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": tool.name,
        "description": tool.description,
        **schema,
    }


#: The forms: ``openai`` is that of Chat Completions, which most frameworks take; ``openai-responses`` is the flat one.
FORMS: Mapping[str, Callable[[Tool, Settings], dict[str, Any]]] = {
    "openai": _openai,
    "openai-responses": _openai_responses,
    "mcp": _mcp,
    "json-schema": _json_schema,
}


def tool_schemas(form: str = "openai", session: Session | None = None) -> list[dict[str, Any]]:
    """All tools, in the form ``openai``, ``openai-responses``, ``mcp`` or ``json-schema``.

    Raises :class:`~celery_allocator.errors.RequestError` for another form.
    """
    if form not in FORMS:
        raise RequestError(f"no form {form!r}: it must be one of {', '.join(FORMS)}")
    settings = (session if session is not None else default_session()).settings
    return [FORMS[form](tool, settings) for tool in TOOLS.values()]


def _schema_of(hint: Any) -> dict[str, Any]:
    """JSON schema of one annotation: plain types, mappings, and unions of them with ``None``."""
    kinds = [
        _JSON_TYPES.get(kind, "object") for kind in (getattr(hint, "__args__", ()) if _is_union(hint) else (hint,))
    ]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def _is_union(hint: Any) -> bool:
    return type(None) in getattr(hint, "__args__", ())
