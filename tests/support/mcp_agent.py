"""An MCP server in a process of its own, and the SDK's client to call it with."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from tests.support.processes import OwnedProcess, clean_environment

COMMAND = ["-m", "celery_allocator", "mcp"]


class McpServer(OwnedProcess):
    """``celery-allocator mcp --http`` on a free port of 127.0.0.1."""

    def __init__(self, directory: Path, env: Mapping[str, str], *options: str) -> None:
        argv = [sys.executable, *COMMAND, "--http", "--port", "0", *options]
        super().__init__(argv, directory / "mcp.log", env=clean_environment(env))

    def start(self) -> McpServer:
        """Start it and wait until it serves."""
        super().start()
        self.wait_for_output("serving MCP at")
        return self

    @property
    def url(self) -> str:
        """Where it serves."""
        found = re.findall(r"serving MCP at (\S+)", self.output(newest_start=True))
        return str(found[-1])


@asynccontextmanager
async def over_http(url: str, token: str | None = None, mode: str = "auto") -> AsyncIterator[Client]:
    """A client that shows ``token``."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        create_mcp_http_client(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


@asynccontextmanager
async def over_stdio(env: Mapping[str, str], *options: str, mode: str = "auto") -> AsyncIterator[Client]:
    """A client that starts a server of its own and speaks to its standard input and output."""
    server = StdioServerParameters(command=sys.executable, args=[*COMMAND, *options], env=dict(env))
    async with Client(server, mode=mode) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return its reply; its success and the SDK's ``is_error`` must agree."""
    result = await client.call_tool(tool, arguments)
    reply: dict[str, Any] = result.structured_content
    assert result.is_error == (not reply["success"])
    return reply
