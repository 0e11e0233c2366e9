"""Every Lua file says what it touches, and compiles on the server that the tests run on."""

from __future__ import annotations

import hashlib

import pytest
import redis

from celery_allocator.ledger import scripts
from tests.support.processes import ROOT

FOLDER = ROOT / "celery_allocator" / "ledger" / "lua"
LIBRARIES = sorted(path.stem for path in FOLDER.glob("_*.lua"))


@pytest.mark.parametrize("name", scripts.operations())
def test_an_operation_opens_with_its_header(name: str) -> None:
    """Purpose, libraries, keys, reply and what it touches, all before the first line of code."""
    lines = scripts.read(name).splitlines()
    code = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    header = "\n".join(lines[:code])
    assert [part for part in scripts.HEADER if part not in header] == []
    assert lines[0].startswith("-- ")
    assert lines[0].endswith(".") or not lines[1].startswith("-- uses:")


@pytest.mark.parametrize("name", scripts.operations())
def test_an_operation_compiles(name: str, ledger_client: redis.Redis) -> None:
    """Joined with its libraries, and under the hash that it will be called by."""
    script = scripts.load(name)
    assert ledger_client.script_load(script.source) == script.sha
    assert script.sha == hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()


def test_a_broken_script_would_not_compile(ledger_client: redis.Redis) -> None:
    """The check above can fail."""
    with pytest.raises(redis.ResponseError, match="compil"):
        ledger_client.script_load(scripts.load("submit").source + "\nlocal = 1")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_says_what_it_is_for_and_is_used(library: str) -> None:
    """Shared Lua nobody joins is dead."""
    assert scripts.read(library).startswith("-- ")
    users = [name for name in scripts.operations() if library[1:] in _uses(name)]
    assert users


@pytest.mark.parametrize("name", scripts.operations())
def test_no_library_is_joined_twice(name: str) -> None:
    """Lua would let the second definition win without a word."""
    assert len(_uses(name)) == len(set(_uses(name)))
    assert {f"_{library}" for library in _uses(name)} <= set(LIBRARIES)


def _uses(name: str) -> list[str]:
    (line,) = [line for line in scripts.read(name).splitlines() if line.startswith("-- uses:")]
    return line.removeprefix("-- uses:").split()
