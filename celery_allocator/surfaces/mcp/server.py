"""The desk as a server of the official MCP SDK.

It is the SDK's low-level server, which takes tools with the schemas that they have: its high-level one makes schemas
from the hints of a function, which would be a second source of them (docs/decisions/0026).
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
from anyio.to_thread import run_sync
from mcp.server import Server, ServerRequestContext
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, TextContent, Tool

from celery_allocator import __version__
from celery_allocator.allocating.catalogue import TOOLS
from celery_allocator.allocating.schema import FORMS
from celery_allocator.surfaces.mcp.caller import Caller
from celery_allocator.surfaces.mcp.desk import Desk

#: Calls that are served at the same time, of each sort: those that wait for room must not keep others from looking.
_CHANGING, _READING = 64, 16

_INSTRUCTIONS = (
    "Allocates GPU memory, CPU cores and RAM of a pool of machines. Call resource_allocator before heavy work. If its "
    "reply has resources, use that GPU (gpu_uuid) and those cores on that node; if it has a queue_position, call "
    "status with the allocation_id until it has resources. Call release with the allocation_id when the work is done. "
    "An allocation ends by itself at expires_at."
)

Context = ServerRequestContext[Any, Any]


def build(desk: Desk, who: Callable[[Context], Caller]) -> Server[Any]:
    """A server that serves at ``desk``. ``who`` tells who makes a request."""
    limits: dict[bool, anyio.CapacityLimiter] = {}

    def limit(*, changes: bool) -> anyio.CapacityLimiter:
        if changes not in limits:
            limits[changes] = anyio.CapacityLimiter(_CHANGING if changes else _READING)
        return limits[changes]

    async def list_tools(ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:  # noqa: ARG001
        settings = desk.session.settings
        described = [FORMS["mcp"](tool, settings) for tool in desk.tools(who(ctx))]
        return ListToolsResult(tools=[Tool.model_validate(tool) for tool in described])

    async def call_tool(ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        caller, left = who(ctx), threading.Event()
        serve = functools.partial(desk.serve, caller, params.name, params.arguments or {}, left)
        changes = params.name in TOOLS and TOOLS[params.name].changes
        try:
            answer = await run_sync(serve, abandon_on_cancel=True, limiter=limit(changes=changes))
        except anyio.get_cancelled_exc_class():
            left.set()  # the thread gives back what nobody will hear of
            raise
        text = TextContent(type="text", text=json.dumps(answer, ensure_ascii=False))
        return CallToolResult(content=[text], structured_content=answer, is_error=not answer["success"])

    return Server(
        "celery-allocator",
        version=__version__,
        title="celery-allocator",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
