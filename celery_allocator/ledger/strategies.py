"""The strategies that a user registers: read from their files, and tried on the server before anything relies on them.

``allocator_strategies`` maps a name to a Lua file, by its path or as ``package.module:file.lua``. What a strategy has
to define is said in ``_place.lua``; the package's own are in ``lua/strategies``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import redis
from redis.exceptions import ResponseError

from celery_allocator.errors import SettingsError
from celery_allocator.ledger import joining, scripts
from celery_allocator.ledger.scripts import Fragment

_LINE = re.compile(r"\buser_script:(\d+):")


def read_strategies(registered: Mapping[str, str]) -> tuple[Fragment, ...]:
    """The strategies of ``allocator_strategies``. Raises :class:`SettingsError` for a file that cannot be read."""
    return tuple((name, _source(name, where)) for name, where in registered.items())


def try_strategy(client: redis.Redis, prefix: str, fragment: Fragment, *common: object) -> None:
    """Let the server compile a strategy and try it, by ``rehearse.lua``; changes nothing.

    Raises :class:`SettingsError` for one that is no Lua, does not define what a strategy has to, or fails.
    """
    name = fragment[0]
    try:
        told = scripts.run(client, "rehearse", prefix, *common, name, registered=(fragment,))
    except KeyError as error:
        raise _unusable(name, f"it names K.{error.args[0]}, and the ledger has no such key") from error
    except ResponseError as error:
        if "user_script" not in str(error):  # not the script's fault
            raise
        raise _unusable(name, _in_file(str(error), fragment)) from error
    if told:
        raise _unusable(name, _in_file(told.decode(errors="replace"), fragment))


def _unusable(name: str, problem: str) -> SettingsError:
    return SettingsError(
        f"allocator_strategies (ALLOCATOR_STRATEGIES): the strategy {name!r} cannot be used: {problem}"
    )


def _in_file(problem: str, fragment: Fragment) -> str:
    """The server's message with the lines of the user's own file. Full lines of comment are not sent."""
    sent = scripts.load("rehearse", (fragment,)).source
    before = sent[: sent.index(joining.start_of(fragment[0]))].count("\n") + 1
    lines = [i for i, line in enumerate(fragment[1].splitlines(), 1) if not line.lstrip(" ").startswith("--")]

    def line(match: re.Match[str]) -> str:
        at = int(match.group(1)) - before
        return f"line {lines[at - 1]}:" if 0 < at <= len(lines) else "after its last line:"

    return _LINE.sub(line, problem)


def _source(name: str, where: str) -> str:
    package, colon, file = where.rpartition(":")
    try:
        found = files(package) / file if colon else Path(where)
        text: str = found.read_text(encoding="utf-8")
    except (OSError, ImportError, TypeError, ValueError) as error:
        raise SettingsError(
            f"allocator_strategies (ALLOCATOR_STRATEGIES): {where!r}, the Lua file of {name!r}, cannot be read "
            f"({error}). Name its path, or package.module:file.lua for a file of an installed package"
        ) from error
    return text if text.endswith("\n") else text + "\n"
