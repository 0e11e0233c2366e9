"""Libraries of Lua functions joined into one script that makes few of them at each call.

A server keeps nothing of a script's between two calls: it makes every function anew that stands in it. That costs more
than it seems, since Lua also looks for each variable that a function shares, one by one among all that are open. Two
scripts with 120 functions each spent a third of their time on that, and called a third of the functions.

So functions are fields of one table, ``fn``. Those that a library's header names with ``-- often:`` are made at the
beginning of each call; any other one is made when it is called for the first time, by the table's ``__index``. Calls
are rendered accordingly: ``place(need)`` in a library or an operation is sent as ``fn.place(need)``. What makes them is
a function itself, of which they take over what they share without a search.

What stands in a library outside of its functions (state, such as ``local unkept = false``) comes first, that of all
libraries. Names of functions and of state must therefore be different in all libraries. A function may give a variable
of its own the name of another function, if it does not call that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from textwrap import indent

#: A library's function: on one line, or from ``local function`` to ``end`` at the start of a line.
FUNCTION = re.compile(r"^local function (\w+)(\((?:[^\n]* end\n|.*?\nend\n))", re.MULTILINE | re.DOTALL)
#: Functions of a library that are called in most calls of the scripts that are called most.
_OFTEN = re.compile(r"^-- often:((?: \w+)+)$", re.MULTILINE)
_COMMENT_LINE = re.compile(r"^ *--.*\n", re.MULTILINE)
#: Numbers that a library names.
_CONSTANTS = re.compile(r"^local ([A-Z_]+(?:, [A-Z_]+)*) = ([\d.]+(?:, [\d.]+)*)(?: *--[^\n]*)?\n", re.MULTILINE)
#: Text and comments, which call nothing; or a name, unless it is a field, a method or a key of a table.
_NAME = re.compile(
    r"--[^\n]*"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'(?:[^'\\\n]|\\.)*'"
    r"|(?<![\w:])(?<!(?<!\.)\.)(?P<name>[A-Za-z_]\w*)\b(?! *=(?!=))"
)
#: Names that a piece of source gives to variables of its own: locals, parameters, loops.
_OWN = re.compile(r"\blocal (?!function\b)([\w, ]+)|\bfunction *(\w*)\(([^)\n]*)\)|\bfor ([\w, ]+?) *(?:=|\bin\b)")
#: Names of variables around the functions as they are sent, besides those of libraries.
_OURS = frozenset(("fn", "make", "made", "name", "main"))
#: Where ``_place.lua`` takes the strategies in.
_STRATEGIES = "-- strategies\n"
_STRATEGY_OF = "strategy_of"
#: The strategy of an allocation whose own is not known here.
_USUAL = "best_fit"


def join(libraries: Iterable[str], body: str, strategies: Mapping[str, str]) -> str:
    """Source of an operation with what it needs of its libraries, keys not rendered yet.

    Functions that it does not come to call are left out. ``strategies``: what ``_place.lua`` takes in, by name. Raises
    ``ValueError`` where a library calls a function outside of one, or gives its state a name that is used here.
    """
    text = "\n".join(libraries)
    often = {name for names in _OFTEN.findall(text) for name in names.split()}
    numbers = _numbers(text)
    body = _with_numbers(body, numbers)
    library = _with_numbers(_CONSTANTS.sub("", _COMMENT_LINE.sub("", text)), numbers)
    functions = {match[1]: f"function{match[2]}" for match in FUNCTION.finditer(library)}
    state = re.sub(r"\n{2,}", "\n", FUNCTION.sub("", library))
    if taken := own_names(state) & _OURS:
        raise ValueError(f"names of this module: {', '.join(sorted(taken))}")
    if early := called(state, functions.keys()):
        raise ValueError(f"called outside of a function, before it is made: {', '.join(sorted(early))}")
    fragments: dict[str, str] = {}
    if _STRATEGIES in text:
        state += "local STRATEGIES = {}\n"
        functions[_STRATEGY_OF] = ""
        fragments = {name: _with_numbers(_COMMENT_LINE.sub("", s), numbers) for name, s in strategies.items()}
    calls = {name: called(source, functions.keys()) for name, source in functions.items()}
    calls[_STRATEGY_OF] = {name for source in fragments.values() for name in named(source)} & functions.keys()
    needed = _reached(called(body, functions.keys()), calls)
    made = {name: _rendered(source, functions.keys()) for name, source in functions.items() if name in needed}
    if _STRATEGY_OF in made:
        made[_STRATEGY_OF] = _strategy_of(fragments, functions.keys())
    # A function has room for 200 local names: the operation's own are in another one than those of its libraries.
    return "".join(
        (
            state,
            "local fn\n",
            _made_at_once({name: source for name, source in made.items() if name in often}),
            _made_when_called({name: source for name, source in made.items() if name not in often}),
            f"local function main()\n{_rendered(body, functions.keys())}end\nreturn main()\n",
        )
    )


def named(source: str) -> set[str]:
    """All names in a piece of source but those of fields, methods and keys."""
    return {match["name"] for match in _NAME.finditer(source)} - {None}


def called(source: str, functions: AbstractSet[str]) -> set[str]:
    """Which of ``functions`` a piece of source calls (or hands on): names them, and not as a variable of its own."""
    return (named(source) & functions) - own_names(source)


def own_names(source: str) -> set[str]:
    """Names that a piece of source gives to variables of its own."""
    code = _NAME.sub(lambda match: match.group() if match["name"] else '""', source)
    found = (names for match in _OWN.findall(code) for names in match)
    return {name.strip() for names in found for name in names.split(",")} - {""}


def start_of(strategy: str) -> str:
    """What the line of a script holds that is before the first one of a strategy."""
    return f'name == "{strategy}" then made = (function()'


def places(source: str) -> bool:
    """Whether a script comes to place anything, so that it has the strategies in it."""
    return start_of(_USUAL) in source


def _numbers(text: str) -> dict[str, str]:
    numbers: dict[str, str] = {}
    for names, values in _CONSTANTS.findall(text):
        numbers.update(zip(names.split(", "), values.split(", "), strict=True))
    return numbers


def _with_numbers(source: str, numbers: Mapping[str, str]) -> str:
    """Source with the numbers that libraries name put where they are used: these are no local names then."""
    if not numbers:
        return source
    return re.sub(rf"\b(?:{'|'.join(numbers)})\b", lambda match: numbers[match.group()], source)


def _reached(new: AbstractSet[str], calls: Mapping[str, AbstractSet[str]]) -> AbstractSet[str]:
    """The functions that are called by the first ones, directly or not. ``calls``: whom each of all calls."""
    kept: AbstractSet[str] = set()
    while new:
        kept |= new
        new = {name for caller in new for name in calls[caller]} - kept
    return kept


def _rendered(source: str, functions: AbstractSet[str]) -> str:
    """Source with its calls of functions as fields of ``fn``."""
    names = called(source, functions)
    return _NAME.sub(lambda match: f"fn.{match['name']}" if match["name"] in names else match.group(), source)


def _made_at_once(made: Mapping[str, str]) -> str:
    # In one table that has room for all from the beginning.
    fields = "".join(f"{name} = {source}," for name, source in made.items())
    return f"local function make()\nfn = {{ {fields} }}\nend\nmake()\n"


def _made_when_called(made: Mapping[str, str]) -> str:
    if not made:
        return ""
    branches = "else".join(f'if name == "{name}" then made = {source}' for name, source in made.items())
    return (
        "setmetatable(fn, { __index = function(_, name)\nlocal made\n"
        f"{branches}end\nfn[name] = made\nreturn made\nend }})\n"
    )


def _strategy_of(fragments: Mapping[str, str], functions: AbstractSet[str]) -> str:
    """``strategy_of(name)``: the strategy, made when it is asked for. One that is not known is ``best_fit``.

    A fragment may be a user's, who may write what he likes. So its calls are not rendered: the library's functions that
    it names are local variables before its first line.
    """
    branches = []
    for name, text in fragments.items():
        used = sorted(named(text) & functions)
        known = f" local {', '.join(used)} = {', '.join(f'fn.{one}' for one in used)}" if used else ""
        branches.append(f"{start_of(name)}{known}\n{indent(text, '  ').rstrip()}\n  end)()\n")
    return (
        "function(name)\n"
        f'  name = name or "{_USUAL}"\n'
        "  local made = STRATEGIES[name]\n"
        "  if made then return made end\n"
        f"  if {'  elseif '.join(branches)}"
        f'  else made = fn.strategy_of("{_USUAL}") end\n'
        "  STRATEGIES[name] = made\n"
        "  return made\n"
        "end\n"
    )
