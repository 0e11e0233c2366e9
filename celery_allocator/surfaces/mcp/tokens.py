"""The file of agents' tokens: who may call, by the SHA-256 of a secret that the file does not hold.

::

    [tokens.research]
    sha256 = "…"                                    # of the token; `celery-allocator mcp token` makes both
    scopes = ["allocator:read", "runtime:control"]
    expires = 2027-01-01T00:00:00Z                  # optional
    tenant = "research"                             # optional
    any = false                                     # may release what others allocated
    [tokens.research.caps]                          # optional, each of them
    gpu_memory_mb = 8192

In place of ``sha256`` a plain ``token`` may stand, in a file that its owner alone can read.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from celery_allocator.errors import LabelError, RequirementsError, TokensError
from celery_allocator.model import Requirements, label
from celery_allocator.surfaces.mcp.caller import SCOPES, Caller
from celery_allocator.surfaces.mcp.caps import CAPS, Caps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Characters of a plain token, at least: it must not be guessed.
SHORTEST = 24
_KEYS = ("sha256", "token", "scopes", "expires", "tenant", "any", "caps")


@dataclass(frozen=True)
class Entry:
    """One token: the caller it stands for, the hash of its secret, and its end (seconds since the epoch)."""

    caller: Caller
    sha256: str
    expires_at: float | None

    def expired(self, now: float) -> bool:
        """Whether it is over."""
        return self.expires_at is not None and self.expires_at <= now


def hashed(secret: str) -> str:
    """What the file holds of a token. A random one needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


class TokenFile:
    """The tokens of one file, read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._entries: tuple[Entry, ...] = ()

    def load(self) -> tuple[Entry, ...]:
        """Read the file now. Raises :class:`TokensError` saying the line and the key that is wrong."""
        with self._lock:
            return self._load()

    def find(self, secret: str) -> Entry | None:
        """The entry of that token, also of one that has expired.

        A file that has become unreadable lets nobody in, and the log says why: what was meant to be revoked in it must
        not go on.
        """
        wanted = hashed(secret)
        found = None
        for entry in self._newest():  # all of them, and each in constant time: nothing is learnt from how long it takes
            if hmac.compare_digest(entry.sha256, wanted):
                found = entry
        return found

    def _newest(self) -> tuple[Entry, ...]:
        """The entries, read again if the file has changed. Who asks meanwhile waits for that: he is in it, perhaps."""
        with self._lock:
            if self._state() != self._seen:
                try:
                    _log.info("%s: %d tokens", self.path, len(self._load()))
                except TokensError as error:
                    _log.error("nobody is let in: %s", error)
            return self._entries

    def _load(self) -> tuple[Entry, ...]:
        self._seen, self._entries = self._state(), ()
        self._entries = _read(self.path)
        return self._entries

    def _state(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)


def _read(path: Path) -> tuple[Entry, ...]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read().decode()
        data = tomllib.loads(text)
    except OSError as error:
        raise TokensError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TokensError(f"{path} is not TOML: {error}") from None
    return _Reader(path, text, private=not mode & (stat.S_IRWXG | stat.S_IRWXO)).entries(data)


class _Reader:
    """Makes entries of what a file says, and complaints that name its lines."""

    def __init__(self, path: Path, text: str, *, private: bool) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._private = private

    def entries(self, data: Mapping[str, Any]) -> tuple[Entry, ...]:
        tokens = data.get("tokens")
        if not isinstance(tokens, dict) or set(data) != {"tokens"}:
            strange = next((key for key in data if key != "tokens"), "tokens")
            raise self._wrong("", strange, "the file holds tables [tokens.NAME] and nothing else")
        read = tuple(self._entry(name, values) for name, values in tokens.items())
        first: dict[str, str] = {}
        for entry in read:
            if (other := first.setdefault(entry.sha256, entry.caller.name)) != entry.caller.name:
                raise self._wrong(entry.caller.name, "sha256", f"is the token of {other} too: each has its own")
        return read

    def _entry(self, name: str, values: Any) -> Entry:
        if not NAME.fullmatch(name):
            raise self._wrong(name, "", "a name has 1 to 64 letters, digits, '_' and '-'")
        if not isinstance(values, dict):
            raise self._wrong(name, "", f"must be a table [tokens.{name}]")
        if unknown := [key for key in values if key not in _KEYS]:
            raise self._wrong(name, unknown[0], f"unknown; known are {', '.join(_KEYS)}")
        caller = Caller(
            name,
            f"token:{name}",
            self._scopes(name, values.get("scopes")),
            tenant=self._tenant(name, values),
            any=self._of(name, "any", values.get("any", False), bool, "true or false"),
            caps=self._caps(name, values.get("caps", {})),
        )
        return Entry(caller, self._hash(name, values), self._expires(name, values.get("expires")))

    def _hash(self, name: str, values: Mapping[str, Any]) -> str:
        if ("sha256" in values) == ("token" in values):
            raise self._wrong(name, "sha256", "an entry has either sha256 or token")
        if "token" in values:
            secret = self._of(name, "token", values["token"], str, "a text")
            if not self._private:
                raise self._wrong(
                    name, "token", "a plain token, and others can read this file: chmod 600 it, or keep its sha256"
                )
            if len(secret) < SHORTEST:
                raise self._wrong(name, "token", f"must have at least {SHORTEST} characters")
            return hashed(secret)
        value = values["sha256"]
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise self._wrong(name, "sha256", "must be 64 hexadecimal digits, in lower case")
        return value

    def _scopes(self, name: str, value: Any) -> frozenset[str]:
        if not isinstance(value, list) or not value or any(scope not in SCOPES for scope in value):
            raise self._wrong(name, "scopes", f"must be a list of some of {', '.join(SCOPES)}")
        return frozenset(value)

    def _tenant(self, name: str, values: Mapping[str, Any]) -> str | None:
        if "tenant" not in values:
            return None if values.get("any") is True else ""
        tenant = self._of(name, "tenant", values["tenant"], str, "a text")
        try:
            label("tenant", tenant)
            return Requirements(tenant=tenant).tenant
        except (LabelError, RequirementsError) as error:
            raise self._wrong(name, "tenant", error.rule) from None

    def _expires(self, name: str, value: Any) -> float | None:
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise self._wrong(name, "expires", "must be a time with its offset, such as 2027-01-01T00:00:00Z")
        return value.astimezone(timezone.utc).timestamp()

    def _caps(self, name: str, values: Any) -> Caps:
        if not isinstance(values, dict):
            raise self._wrong(name, "caps", f"must be a table [tokens.{name}.caps]")
        for key, value in values.items():
            if key not in CAPS:
                raise self._wrong(name, key, f"unknown cap; known are {', '.join(CAPS)}")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if key == "ttl_s":
                if not (whole or isinstance(value, float)) or not 0 < value < 1e9:
                    raise self._wrong(name, key, "must be a number of seconds above 0")
            elif not whole or (value < 0 and key != "priority"):
                raise self._wrong(name, key, "must be a whole number from 0 up")
        return Caps(**values)

    def _of(self, name: str, key: str, value: Any, kind: Callable[..., Any], words: str) -> Any:
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise self._wrong(name, key, f"must be {words}")
        return value

    def _wrong(self, name: str, key: str, rule: str) -> TokensError:
        """Names the line, as well as it can be found, and never a value: it may be a secret."""
        where = ".".join(part for part in ("tokens", name, key) if part) if name else key
        line = self._line(name, key)
        return TokensError(f"{self._path}{f', line {line}' if line else ''}: {where}: {rule}")

    def _line(self, name: str, key: str) -> int | None:
        """The line of that key, else of its table, in a file as people write them: the TOML reader does not tell."""
        mine = f"tokens.{name}" if name else key
        table, best = "", None
        for number, line in enumerate(self._lines, start=1):
            if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
                table = re.sub(r"[\"']|\s*(\.)\s*", r"\1", header[1])
            inside = not name or table in (mine, f"{mine}.caps")
            if inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
                return number
            if header and (table == f"{mine}.{key}" or (table == mine and best is None)):
                best = number
        return best
