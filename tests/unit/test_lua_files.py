"""Every Lua file: documented, complete, and accepted by the server."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import redis

from celery_allocator.ledger import joining, keys, scripts

FOLDER = files("celery_allocator.ledger") / "lua"
LIBRARIES = sorted(e.name[1:-4] for e in FOLDER.iterdir() if e.name.startswith("_"))
OPERATIONS = scripts.operations()
_DEFINITION = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)
#: Names that a library defines for others, by library.
DEFINES = {library: set(_DEFINITION.findall(scripts.read(f"_{library}"))) for library in LIBRARIES}
KEYWORDS = (
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
    "repeat", "return", "then", "true", "until", "while",
)  # fmt: skip
#: Globals that the server offers and the scripts use.
OFFERED = (
    "redis", "math", "string", "table", "tonumber", "tostring", "ipairs", "next", "pcall", "pairs", "unpack", "KEYS",
    "ARGV", "cmsgpack", "cjson", "type", "error", "setmetatable",
)  # fmt: skip


def code(text: str) -> str:
    """Lua source without its comments and strings."""
    return re.sub(r'"[^"\n]*"', '""', re.sub(r"--[^\n]*", "", text))


def test_all_operations_are_there() -> None:
    assert set(OPERATIONS) >= {"submit", "start", "release", "cancel", "renew", "tick", "cordon", "snapshot", "verify"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_compiles_and_its_hash_is_the_servers(name: str, ledger_client: redis.Redis) -> None:
    script = scripts.load(name)
    assert ledger_client.script_load(script.source) == script.sha


@pytest.mark.parametrize("name", [name for name in OPERATIONS if scripts.places(name)])
def test_an_operation_has_room_for_any_number_of_strategies(name: str, ledger_client: redis.Redis) -> None:
    """A Lua function has room for 200 local names."""
    registered = tuple((f"mine_{i}", "return { score = function() return 0 end }\n") for i in range(200))
    script = scripts.load(name, registered)
    assert ledger_client.script_load(script.source) == script.sha


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_room_for_more_names(name: str, ledger_client: redis.Redis) -> None:
    """Before a library's next function is the one too many, of which the server tells in another script."""
    more = "".join(f"local more_{i}\n" for i in range(10))
    source = scripts.load(name).source.replace("local function main()", more + "local function main()")
    assert more in source
    assert ledger_client.script_load(source)


@pytest.mark.parametrize("name", OPERATIONS)
def test_functions_have_room_for_more_that_they_share(name: str, ledger_client: redis.Redis) -> None:
    """A Lua function has room for 60 variables of those around it."""
    more = [f"more_{i}" for i in range(10)]
    source = scripts.load(name).source.replace("local fn\n", f"local fn, {', '.join(more)}\n")
    assert f"local fn, {more[0]}" in source
    for start in ("local function make()\n", "__index = function(_, name)\n", "local function main()\n"):
        source = source.replace(start, f"{start}local function shares() return {', '.join(more)} end\n")
    assert "local function shares()" in source
    assert ledger_client.script_load(source)


def test_no_name_of_a_library_is_used_twice() -> None:
    names = [name for library in LIBRARIES for name in top_level(scripts.read(f"_{library}"))]
    assert {name for name in names if names.count(name) > 1} == set()


def top_level(text: str) -> list[str]:
    """Names of a library's functions and state."""
    found = re.findall(r"^local (?:function )?([\w, ]+)", text, re.MULTILINE)
    return [name.strip() for names in found for name in names.split(",")]


@pytest.mark.parametrize("name", [*OPERATIONS, *(f"_{library}" for library in LIBRARIES)])
def test_a_variable_that_is_named_as_a_function_is_never_called(name: str) -> None:
    """The function could not be called there, as the name is the variable's (see joining.py)."""
    sources = [scripts.read(name)]
    if name.startswith("_"):
        sources = [f"function{match[2]}" for match in joining.FUNCTION.finditer(sources[0])]
    for source in sources:
        own = joining.own_names(source) & set().union(*DEFINES.values())
        assert {one for one in own if re.search(rf"(?<![\w.:]){one}\(", code(source))} == set()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_names_functions_of_its_own_that_are_called_often(library: str) -> None:
    text = scripts.read(f"_{library}")
    often = [name for names in re.findall(r"^-- often: (.*)$", text, re.MULTILINE) for name in names.split()]
    assert set(often) <= DEFINES[library] | {"strategy_of"}
    assert len(often) == len(set(often))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_opens_with_its_header(name: str) -> None:
    text = scripts.read(name)
    header = re.match(r"(?:--[^\n]*\n)+", text)
    assert header is not None
    for item in scripts.HEADER:
        assert item in header.group(), f"{name}.lua does not say {item!r}"
    assert not text.startswith("-- uses"), "a sentence of purpose comes first"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_server_is_told_the_flags_of_an_operation(name: str) -> None:
    declared = re.search(r"^-- flags: (.+)$", scripts.read(name), re.MULTILINE)
    first = scripts.load(name).source.partition("\n")[0]
    assert first == (f"#!lua flags={declared.group(1)}" if declared else "#!lua")
    assert scripts.load(name).reads == (declared is not None and declared.group(1) == "no-writes")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_says_what_it_is(name: str) -> None:
    assert scripts.read(f"_{name}").startswith("-- Library: ")


@pytest.mark.parametrize("name", [*OPERATIONS, *(f"_{library}" for library in LIBRARIES)])
def test_keys_are_known_and_spelled_nowhere_else(name: str) -> None:
    body = code(scripts.read(name))
    assert set(re.findall(r"\bK\.(\w+)", body)) <= set(keys.KEYS)
    assert re.search(r"\bK\.", keys.render(body)) is None
    if name != "_base":
        assert "KEYS[" not in body
        assert not re.search(r"\bP\b", body), "the prefix is used by rendered keys alone"


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(KeyError):
        keys.render('call("GET", K.nonsense)')


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_libraries_used_are_the_ones_declared(name: str) -> None:
    """Declared in an order in which each finds what it needs, and none for nothing."""
    text = scripts.read(name)
    declared = re.search(r"^-- uses:(.*)$", text, re.MULTILINE)
    assert declared is not None
    libraries = declared.group(1).split()
    assert set(libraries) <= set(LIBRARIES)
    assert libraries[0] == "base"
    later = code(text)
    for library in reversed(libraries):
        body = code(scripts.read(f"_{library}"))
        used = {word for word in DEFINES[library] if re.search(rf"\b{word}\b", later)}
        assert used, f"{name}.lua declares {library} and uses nothing of it"
        later += body


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_unknown_global_is_read(name: str) -> None:
    """A misspelled name is a global, which the server refuses, but only when that line runs."""
    source = code(scripts.load(name).source.partition("\n")[2])  # the first line has the script's flags
    local_names = set(re.findall(r"\blocal (?:function )?([\w, ]+)", source))
    bound = {part.strip() for names in local_names for part in names.split(",")}
    bound |= {p.strip() for params in re.findall(r"function[^(\n]*\(([^)]*)\)", source) for p in params.split(",")}
    bound |= {p.strip() for names in re.findall(r"\bfor ([\w, ]+) in\b", source) for p in names.split(",")}
    bound |= set(re.findall(r"\bfor (\w+) ?=", source))
    words = set(re.findall(r"(?<![\w.:])([A-Za-z_]\w*)(?!\s*=[^=]|\w)", re.sub(r"[{,]\s*\w+\s*=(?!=)", "{", source)))
    assert words - bound - {*KEYWORDS, *OFFERED} == set()
