"""The server on standard input and output, for a host that starts it."""

from __future__ import annotations

import anyio
from mcp.server.stdio import stdio_server

from celery_allocator.surfaces.mcp.caller import Caller
from celery_allocator.surfaces.mcp.desk import Desk
from celery_allocator.surfaces.mcp.server import build

#: Seconds that calls in progress get to end when the host has gone.
_GRACE_S = 5


def serve(desk: Desk, *, control: bool) -> None:
    """Serve this process's user until standard input ends. ``control``: changing tools too."""
    caller = Caller.local(control=control)
    server = build(desk, lambda _: caller)

    async def run() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(run)
    desk.drain(_GRACE_S)
