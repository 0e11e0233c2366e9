"""The agent executor: the function form as a tool call, behind a permission, with a JSON schema.

Both are made from the tool's entry in :mod:`~celery_allocator.allocating.catalogue`, as the MCP server's are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery_allocator.allocating import reply
from celery_allocator.allocating.catalogue import CONTROL, TOOLS
from celery_allocator.allocating.schema import parameters
from celery_allocator.allocating.session import Session, default_session
from celery_allocator.errors import AllocatorError, PermissionDenied, RequestError

TOOL = "resource_allocator"
#: Permission that a caller must hold.
PERMISSION = CONTROL


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
    return TOOLS[TOOL].function(**params, session=session)


def tool_schema(session: Session | None = None) -> dict[str, Any]:
    """Name, description and the JSON schema of the parameters, as agent frameworks take them."""
    settings = (session if session is not None else default_session()).settings
    tool = TOOLS[TOOL]
    return {
        "name": tool.name,
        "description": tool.description,
        "permission": tool.permission,
        "parameters": parameters(tool, settings),
    }


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
    return TOOLS[TOOL].checked(params)
