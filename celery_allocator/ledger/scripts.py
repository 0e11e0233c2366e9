"""The Lua scripts: joined from their libraries, rendered, called by hash, loaded again when the server forgot them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError

from celery_allocator.ledger import joining, keys

_USES = re.compile(r"^-- uses:((?: \w+)+)$", re.MULTILINE)
#: What the server is told of an operation (``allow-oom``, ``no-writes``), separated by commas.
_FLAGS = re.compile(r"^-- flags: ([a-z,-]+)$", re.MULTILINE)
#: The name of a strategy and its Lua source.
Fragment = tuple[str, str]

#: What every operation's header must say, besides one sentence of purpose.
HEADER = ("-- uses:", "-- KEYS:", "Reply:", "Touches:")


@dataclass(frozen=True)
class Script:
    """One operation, ready to be sent."""

    name: str
    source: str
    sha: str
    #: It writes nothing, so that a user who may only read can run it.
    reads: bool


def operations() -> list[str]:
    """Names of all operations, in alphabetical order."""
    folder = files(__package__) / "lua"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name[:-4] for name in names if name.endswith(".lua") and not name.startswith("_"))


def read(name: str) -> str:
    """One Lua file as it stands in the package."""
    return (files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


@cache
def strategies() -> dict[str, str]:
    """The strategies of the package: the name of each and its Lua source, in alphabetical order."""
    folder = files(__package__) / "lua" / "strategies"
    found = {entry.name.removesuffix(".lua"): entry.read_text(encoding="utf-8") for entry in folder.iterdir()}
    return dict(sorted(found.items()))


def places(name: str) -> bool:
    """Whether an operation comes to place anything, so that it takes the strategies in."""
    return joining.places(load(name).source)


@cache
def load(name: str, registered: tuple[Fragment, ...] = ()) -> Script:
    """An operation joined with the libraries its header names (in that order), keys rendered.

    ``registered``: the strategies that it knows besides the package's.

    The first line tells the server (Redis 7.0, Valkey 7.2) the script's flags; without one it would let scripts write
    until the memory is full in the middle of one.
    """
    body = read(name)
    uses = _USES.search(body)
    if uses is None:
        raise ValueError(f"{name}.lua lacks a '-- uses:' line")
    libraries = [read(f"_{library}") for library in uses.group(1).split()]
    flags = _FLAGS.search(body)
    first = f"#!lua flags={flags.group(1)}\n" if flags else "#!lua\n"
    source = first + keys.render(joining.join(libraries, body, {**strategies(), **dict(registered)}))
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, source, sha, flags is not None and "no-writes" in flags.group(1).split(","))


def run(client: redis.Redis, name: str, prefix: str, *args: Any, registered: tuple[Fragment, ...] = ()) -> Any:
    """Run an operation. A server that does not know the script (restart, ``SCRIPT FLUSH``, failover) is told it.

    It is told by running its source, which it keeps: a right to load scripts is not needed.
    """
    script = load(name, registered)
    by_hash, by_source = ("EVALSHA_RO", "EVAL_RO") if script.reads else ("EVALSHA", "EVAL")
    try:
        return client.execute_command(by_hash, script.sha, 1, prefix, *args)
    except NoScriptError:
        return client.execute_command(by_source, script.source, 1, prefix, *args)
