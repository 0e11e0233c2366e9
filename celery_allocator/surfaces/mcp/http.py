"""The server over streamable HTTP: who calls is told by a bearer token."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Iterable
from typing import Any

import uvicorn
from anyio.to_thread import run_sync
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette

from celery_allocator.errors import SettingsError
from celery_allocator.surfaces.mcp.caller import Caller
from celery_allocator.surfaces.mcp.desk import Desk
from celery_allocator.surfaces.mcp.server import Context, build
from celery_allocator.surfaces.mcp.tokens import TokenFile

_log = logging.getLogger(__name__)

PATH = "/mcp"
#: Bytes of a request's body at most: a call is small.
_LARGEST_BODY = 256 * 1024
#: Seconds that calls in progress get to end when the server is stopped.
_GRACE_S = 5


class _Known(AccessToken):
    """A token that was found in the file; its secret is not kept."""

    caller: Any


class _Verifier(TokenVerifier):
    """Asks the file of tokens."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def verify_token(self, token: str) -> AccessToken | None:
        """The caller that a token stands for; ``None`` for one that is unknown or over."""
        entry = await run_sync(self._tokens.find, token)
        if entry is None:
            _log.warning("a call with an unknown token was refused")
            return None
        caller = entry.caller
        if entry.expired(time.time()):
            _log.warning("a call with the token %s was refused: it has expired", caller.name)
            return None
        expires = None if entry.expires_at is None else int(entry.expires_at)
        return _Known(
            token="", client_id=caller.name, scopes=sorted(caller.scopes), expires_at=expires, caller=caller
        )  # fmt: skip


def check_binding(host: str, *, with_tokens: bool) -> None:
    """Raise :class:`SettingsError` for an address that others can reach, where anybody could call."""
    if not with_tokens and not is_loopback(host):
        raise SettingsError(
            f"--host {host} can be reached from elsewhere, and without tokens anybody could call: add --tokens FILE "
            "(celery-allocator mcp token NAME makes one), or bind 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this host can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def application(
    desk: Desk, *, host: str, port: int, tokens: TokenFile | None, control: bool, allowed: Iterable[str] = ()
) -> Starlette:
    """The ASGI application. Without ``tokens`` everybody who reaches it is this process's user.

    ``allowed``: further names under which the server is known, as they stand in the Host header.
    """
    local = Caller.local(control=control)

    def who(ctx: Context) -> Caller:
        if tokens is None:
            return local
        assert ctx.request is not None
        user = ctx.request.scope["user"]  # of this very request, also where the SDK keeps a session
        assert isinstance(user, AuthenticatedUser) and isinstance(user.access_token, _Known)
        caller: Caller = user.access_token.caller
        return caller

    # There is no authorization server to point to, and so no metadata of one: tokens come from the operator.
    url = AnyHttpUrl(f"http://{_bracketed(host)}:{port}{PATH}")
    auth = None if tokens is None else AuthSettings(issuer_url=url, resource_server_url=None)
    return build(desk, who).streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,  # a call needs no other before it, so a restart of the server is not noticed
        max_request_body_size=_LARGEST_BODY,
        transport_security=_security(host, allowed),
        host=host,
        auth=auth,
        token_verifier=None if tokens is None else _Verifier(tokens),
    )


def serve(
    desk: Desk, *, host: str, port: int, tokens: TokenFile | None, control: bool, allowed: Iterable[str] = ()
) -> None:
    """Serve until interrupted or terminated. ``port`` 0: any that is free; the log tells which.

    Raises :class:`SettingsError`.
    """
    check_binding(host, with_tokens=tokens is not None)
    if not is_loopback(host):
        _log.warning("tokens cross the network in clear: let a proxy with TLS stand before this server")
    app = application(desk, host=host, port=port, tokens=tokens, control=control, allowed=allowed)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # it would hold what clients write into URLs
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    _Server(config, desk).run()


class _Server(uvicorn.Server):
    """Says where it serves once it does; ends when those who waited for room have left the line."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind and listen. Raises :class:`SettingsError` where that cannot be done."""
        try:
            await super().startup(sockets)
        except SystemExit:  # what uvicorn makes of it, having logged why
            where = f"{_bracketed(self.config.host)}:{self.config.port}"
            raise SettingsError(f"cannot listen at {where}, perhaps as another does: see --port, --host") from None
        for server in self.servers:
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                _log.info("serving MCP at http://%s:%d%s", _bracketed(host), port, PATH)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let calls in progress end, cancel those that do not, and wait for their threads."""
        await super().shutdown(sockets)
        await run_sync(self._desk.drain, _GRACE_S)


def _security(host: str, allowed: Iterable[str]) -> TransportSecuritySettings:
    """Only requests that name this server: a page in a browser could have its own name resolve to here."""
    names = {"127.0.0.1", "localhost", "[::1]", *(name.strip() for name in allowed)}
    if not is_loopback(host):
        names |= {socket.gethostname()} | ({_bracketed(host)} if host not in ("0.0.0.0", "::") else set())  # noqa: S104
    hosts = sorted(names | {f"{name}:*" for name in names})
    origins = [f"{scheme}://{name}" for name in hosts for scheme in ("http", "https")]
    return TransportSecuritySettings(enable_dns_rebinding_protection=True, allowed_hosts=hosts, allowed_origins=origins)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
