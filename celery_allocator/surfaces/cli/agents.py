"""Commands for agents: the MCP server, its tokens, the tools' schemas."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click

from celery_allocator.allocating import tool_schemas
from celery_allocator.allocating.schema import FORMS
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.ending import until_interrupted
from celery_allocator.surfaces.mcp import minting
from celery_allocator.surfaces.mcp.caller import SCOPES
from celery_allocator.surfaces.mcp.caps import CAPS
from celery_allocator.surfaces.mcp.desk import Desk
from celery_allocator.surfaces.mcp.tokens import TokenFile

#: Modules that come with the extra ``mcp``.
_EXTRA = ("anyio", "mcp", "mcp_types", "pydantic", "starlette", "uvicorn")
_LEVELS = ("debug", "info", "warning", "error")

_tokens_option = click.option(
    "--tokens",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of tokens (setting allocator_mcp_tokens).",
)


@click.group(invoke_without_command=True)
@click.option("--http", is_flag=True, help="Serve streamable HTTP at /mcp, in place of standard input and output.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; another one needs tokens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option(
    "--allowed-host", "allowed", multiple=True, metavar="NAME", help="Another name of this server, for Host headers."
)
@_tokens_option
@click.option("--allow-control", is_flag=True, help="Changing tools too, where no token is asked for.")
@click.option(
    "--log-level", type=click.Choice(_LEVELS), default="info", show_default=True, help="Of the log on standard error."
)
@click.pass_context
def mcp(ctx: click.Context, /, **given: Any) -> None:
    """Serve agents by the Model Context Protocol, on standard input and output or over HTTP.

    Tools: resource_allocator and release (scope runtime:control), status and queue (allocator:read).
    """
    if ctx.invoked_subcommand is None:
        console = ctx.find_object(Console)
        assert console is not None
        _serve(console, **given)


def _serve(
    console: Console,
    *,
    http: bool,
    host: str,
    port: int,
    allowed: tuple[str, ...],
    tokens: Path | None,
    allow_control: bool,
    log_level: str,
) -> None:
    # Debug messages of the SDK hold what clients send; ours alone get that far.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery_allocator").setLevel(log_level.upper())
    logging.getLogger("mcp").setLevel(logging.WARNING)
    desk = Desk(console.fresh_session)
    if not http:
        if tokens is not None:
            raise click.UsageError("--tokens is for --http: on standard input and output nobody shows one")
        with until_interrupted():
            _extra("stdio").serve(desk, control=allow_control)
        return
    file = _token_file(console, tokens)
    if file is not None and allow_control:
        raise click.UsageError("--allow-control is for callers without a token: with tokens, their scopes decide")
    if file is not None:
        file.load()
    with until_interrupted():
        _extra("http").serve(desk, host=host, port=port, tokens=file, control=allow_control, allowed=allowed)


def _extra(name: str) -> Any:
    try:
        from celery_allocator.surfaces.mcp import http, stdio
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise click.ClickException(
            f"{error.name} is missing: the MCP server needs  pip install 'celery-allocator[mcp]'"
        ) from None
    return {"http": http, "stdio": stdio}[name]


def _token_file(console: Console, given: Path | None) -> TokenFile | None:
    path = given or console.settings.mcp_tokens
    return TokenFile(Path(path)) if path else None


def _caps_options(command: Any) -> Any:
    words = {
        "gpu_memory_mb": ("MB", "GPU memory of one allocation, at most."),
        "cpu_cores": ("N", "Cores of one allocation, at most."),
        "ram_mb": ("MB", "RAM of one allocation, at most."),
        "priority": ("N", "Priority, at most."),
        "ttl_s": ("SECONDS", "TTL of one allocation, at most; it is also what is taken where none is asked for."),
        "allocations": ("N", "Allocations that may live at once, those in line included."),
    }
    for cap in reversed(CAPS):
        metavar, text = words[cap]
        option = "--max-" + cap.removesuffix("_mb").removesuffix("_s").replace("_", "-")
        command = click.option(option, cap, type=float if cap == "ttl_s" else int, metavar=metavar, help=text)(command)
    return command


@mcp.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@click.option("--days", type=click.FloatRange(0, min_open=True), help="Days until it expires. Unset: never.")
@click.option("--tenant", metavar="NAME", help="Whom everything that is allocated with it is for.")
@click.option("--any", "any_owner", is_flag=True, help="It may see and release what others allocated.")
@_caps_options
@_tokens_option
@json_option
@pass_console
@click.pass_context
def token(
    ctx: click.Context,
    console: Console,
    /,
    name: str,
    scopes: tuple[str, ...],
    days: float | None,
    tenant: str | None,
    tokens: Path | None,
    *,
    any_owner: bool,
    as_json: bool,
    **caps: Any,
) -> None:
    """Make a token and add its hash to the file of tokens. The token itself is printed now, and never again."""
    outer = ctx.parent.params.get("tokens") if ctx.parent else None
    file = _token_file(console, tokens or outer)
    if file is None:
        raise click.UsageError("which file? --tokens FILE, or the setting allocator_mcp_tokens")
    secret = minting.add(
        file.path,
        name,
        dict.fromkeys(scopes),
        expires=None if days is None else datetime.now(timezone.utc) + timedelta(days=days),
        tenant=tenant,
        any_owner=any_owner,
        caps={cap: value for cap, value in caps.items() if value is not None},
    )
    if as_json:
        print_json({"success": True, "name": name, "token": secret, "file": str(file.path)})
    else:
        click.echo(secret)
        click.echo(f"{name} is in {file.path}. Keep the token above: it is not shown again.", err=True)


@click.command()
@click.option(
    "--format", "form", type=click.Choice(list(FORMS)), default="openai", show_default=True, help="Whose form."
)
@click.option("--json", is_flag=True, expose_value=False, help="Print JSON (always so here).")
@pass_console
def tools(console: Console, form: str) -> None:
    """The tools for agents, with the schemas of their parameters, in the form that a framework takes."""
    print_json(tool_schemas(form, console.session))


COMMANDS: tuple[click.Command, ...] = (mcp, tools)
