"""New tokens: a random secret for the caller, and its entry for the file."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from celery_allocator.errors import TokensError
from celery_allocator.surfaces.mcp.tokens import NAME, TokenFile, hashed

#: What every token begins with, so that people and scanners know one when they see it.
PREFIX = "cat_"


def new_secret() -> str:
    """A token: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def add(
    path: Path,
    name: str,
    scopes: Iterable[str],
    *,
    expires: datetime | None = None,
    tenant: str | None = None,
    any_owner: bool = False,
    caps: Mapping[str, Any] | None = None,
) -> str:
    """Add a token to the file, which is made (readable by its owner alone) if need be. Returns the secret.

    What stands in the file stays as it is, comments too. Raises :class:`TokensError` if the file is damaged, has that
    name, or would be damaged by the new entry; then it is unchanged.
    """
    if not NAME.fullmatch(name):
        raise TokensError(f"{name!r}: a name has 1 to 64 letters, digits, '_' and '-'")
    secret = new_secret()
    text = _entry(name, hashed(secret), scopes, expires, tenant, caps or {}, any_owner=any_owner)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise TokensError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            known = [entry.caller.name for entry in TokenFile(path).load()]
            if name in known:
                raise TokensError(f"{path} has a token {name!r} already: take its entry out first, or choose a name")
            file.seek(size - 1)
            text = ("\n" if file.read(1) == b"\n" else "\n\n") + text
        file.write(text.encode())
        file.flush()
        try:
            TokenFile(path).load()
        except TokensError:
            file.truncate(size)
            raise
    return secret


def _entry(
    name: str,
    sha256: str,
    scopes: Iterable[str],
    expires: datetime | None,
    tenant: str | None,
    caps: Mapping[str, Any],
    *,
    any_owner: bool,
) -> str:
    # A JSON text is a TOML text, too.
    lines = [f"[tokens.{name}]", f'sha256 = "{sha256}"', f"scopes = {json.dumps(list(scopes))}"]
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    if tenant is not None:
        lines.append(f"tenant = {json.dumps(tenant, ensure_ascii=False)}")
    if any_owner:
        lines.append("any = true")
    if caps:
        lines += [f"[tokens.{name}.caps]", *(f"{cap} = {value}" for cap, value in caps.items())]
    return "\n".join(lines) + "\n"
