"""The allocator as an MCP server, over stdio and streamable HTTP.

``desk`` decides what a caller may do and does it, ``tokens`` says who calls; neither imports the SDK. ``server``,
``http`` and ``stdio`` need the extra ``mcp``.
"""

from __future__ import annotations
