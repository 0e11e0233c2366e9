"""The Lua scripts: joined from their libraries, rendered, called by hash, loaded again when the server forgot them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from textwrap import indent
from typing import Any

import redis
from redis.exceptions import NoScriptError

from celery_allocator.ledger import keys

#: A library's function: on one line, or from ``local function`` to ``end`` at the start of a line.
_FUNCTION = re.compile(r"^local function (\w+)\((?:[^\n]* end\n|.*?\nend\n)", re.MULTILINE | re.DOTALL)
_USES = re.compile(r"^-- uses:((?: \w+)+)$", re.MULTILINE)
#: What the server is told of an operation (``allow-oom``, ``no-writes``), separated by commas.
_FLAGS = re.compile(r"^-- flags: ([a-z,-]+)$", re.MULTILINE)
#: Numbers that a library names.
_CONSTANTS = re.compile(r"^local ([A-Z_]+(?:, [A-Z_]+)*) = ([\d.]+(?:, [\d.]+)*)(?: *--[^\n]*)?\n", re.MULTILINE)
#: Where ``_place.lua`` takes the strategies in.
_STRATEGIES = "-- strategies\n"
#: The strategy of an allocation whose own is not known here.
_USUAL = "best_fit"

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
    return "local function strategy_of(" in load(name).source


def _joined(strategies: dict[str, str]) -> str:
    """The strategies as Lua functions in one table, and ``strategy_of``. One that is not known is ``best_fit``.

    In a table, as a function of Lua has room for 200 local names, whoever registers how many.
    """
    makers = [f"  {start_of(name)}\n{indent(text, '  ').rstrip()}\n  end,\n" for name, text in strategies.items()]
    return "".join(
        (
            "local MAKERS, STRATEGIES = nil, {}\n",
            "local function strategy_makers()\n  return {\n",
            *makers,
            "  }\nend\n",
            "local function strategy_of(name)\n",
            f'  name = name or "{_USUAL}"\n',
            "  local made = STRATEGIES[name]\n",
            "  if made then return made end\n",
            "  MAKERS = MAKERS or strategy_makers()\n",
            f'  made = (MAKERS[name] or MAKERS["{_USUAL}"])()\n',
            "  STRATEGIES[name] = made\n",
            "  return made\n",
            "end\n",
        )
    )


def start_of(strategy: str) -> str:
    """The line of a script before the first one of a strategy."""
    return f'["{strategy}"] = function()'


@cache
def load(name: str, registered: tuple[Fragment, ...] = ()) -> Script:
    """An operation joined with the libraries its header names (in that order), keys rendered.

    ``registered``: the strategies that it knows besides the package's.

    Functions that it does not come to call are left out: the server makes every function of a script anew at each call.
    The first line tells the server (Redis 7.0, Valkey 7.2) the script's flags; without one it would let scripts write
    until the memory is full in the middle of one.
    """
    body = read(name)
    uses = _USES.search(body)
    if uses is None:
        raise ValueError(f"{name}.lua lacks a '-- uses:' line")
    joined = {**strategies(), **dict(registered)}
    parts = [read(f"_{library}").replace(_STRATEGIES, _joined(joined)) for library in uses.group(1).split()]
    flags = _FLAGS.search(body)
    first = f"#!lua flags={flags.group(1)}\n" if flags else "#!lua\n"
    # A function has room for 200 local names: the operation's own are in another one than those of its libraries.
    library, body = _inlined(_reached("\n".join(parts), body), body)
    source = first + keys.render(f"{library}local function main()\n{body}end\nreturn main()\n")
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, source, sha, flags is not None and "no-writes" in flags.group(1).split(","))


def _reached(library: str, body: str) -> str:
    """What of ``library`` is called from ``body``, directly or not, in its own order and without comments."""
    library = re.sub(r"^ *--.*\n", "", library, flags=re.MULTILINE)
    functions = {match.group(1): match.group() for match in _FUNCTION.finditer(library)}
    rest = _FUNCTION.sub("", library)
    kept: set[str] = set()
    words = set(re.findall(r"\w+", re.sub(r"--[^\n]*", "", rest + body)))
    while new := (functions.keys() & words) - kept:
        kept |= new
        words = {word for name in new for word in re.findall(r"\w+", functions[name])}
    return _FUNCTION.sub(lambda match: match.group() if match.group(1) in kept else "", library)


def _inlined(library: str, body: str) -> tuple[str, str]:
    """Both with the numbers that ``library`` names put where they are used: these are no local names then."""
    numbers: dict[str, str] = {}
    for names, values in _CONSTANTS.findall(library):
        numbers.update(zip(names.split(", "), values.split(", "), strict=True))
    if not numbers:
        return library, body
    used = re.compile(rf"\b(?:{'|'.join(numbers)})\b")
    rest = _CONSTANTS.sub("", library)
    return tuple(used.sub(lambda match: numbers[match.group()], text) for text in (rest, body))  # type: ignore[return-value]


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
