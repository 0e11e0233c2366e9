"""Render the Python reference from signatures and docstrings: public names alone, as ``PAGES`` lists them."""

# ruff: noqa: INP001

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from typing import Any

from celery_allocator import errors

#: Public by name, and for this package's own parts.
INNER = ("note", "note_again", "keeps_place", "follow", "to_wire", "from_wire", "add")
#: What a program may read of a ledger; the rest of ``Ledger`` is the plugin's.
LEDGER = (
    "snapshot",
    "room",
    "get",
    "find",
    "queue",
    "delayed",
    "on_hold",
    "held",
    "node",
    "events",
    "journal",
    "verify",
)

TASKS_INTRO = """# Python: tasks and allocations

Made from signatures and docstrings. What stands here can be relied on; everything else may change without notice. Sizes
are in MB (2^20 bytes), times in seconds, cores are ids unless they are counted.
"""

POOL_INTRO = """# Python: a pool

What programs use that watch or operate a pool; [tasks and allocations](python.md) has the rest. Made from signatures
and docstrings.
"""

#: Page by page: the introduction, then modules with their names (``None``: its ``__all__``).
PAGES: dict[str, tuple[str, dict[str, tuple[str, ...] | None]]] = {
    "python.md": (
        TASKS_INTRO,
        {
            "celery_allocator": None,
            "celery_allocator.resource_allocator": (
                "pool_status",
                "pool_queue",
                "execute",
                "tool_schema",
                "tool_schemas",
            ),
            "celery_allocator.model": (
                *("State", "Kind", "ClusterState", "NodeState", "DeviceState", "WorkerState"),
                *("WorkerUse", "TaskUse", "NodeInventory", "DeviceInventory", "Link"),
            ),
            "celery_allocator.errors": (),
        },
    ),
    "python-pool.md": (
        POOL_INTRO,
        {
            "celery_allocator.ledger": ("connect", "Ledger"),
            "celery_allocator.overview": None,
            "celery_allocator.operations": (
                *(
                    "Operator",
                    "Actor",
                    "Effect",
                    "Plan",
                    "Cordon",
                    "Drain",
                    "Uncordon",
                    "Pause",
                    "Resume",
                    "Hold",
                    "Unhold",
                ),
                *("Priority", "Front", "Cancel", "Release", "OpenBreaker", "CloseBreaker", "digest"),
                *("SetTenant", "ResetTenant", "Selection", "select", "Outcome"),
            ),
            "celery_allocator.updates": ("watch", "Watch", "Change"),
            "celery_allocator.history": ("open_history", "History", "allocations", "Filter", "Recorder"),
            "celery_allocator.report": ("make_report", "Report", "Group", "Figures"),
            "celery_allocator.gate": ("check", "Verdict", "Judgement", "rule", "Measurement", "Evidence"),
        },
    ),
}


def pages() -> dict[str, str]:
    """The text of each page, by its file's name."""
    return {name: "\n".join([intro, *_page(modules)]) for name, (intro, modules) in PAGES.items()}


def _page(modules: dict[str, tuple[str, ...] | None]) -> Iterator[str]:
    for name, names in modules.items():
        module = import_module(name)
        yield f"## {name}\n"
        if name != "celery_allocator":
            yield f"{_prose(module.__doc__)}\n"
        if module is errors:
            yield from _errors()
        for public in module.__all__ if names is None else names:
            value = getattr(module, public)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield from _entry(public, value)


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if inspect.isfunction(value):
        yield f"```python\n{_call(name, _function(value))}\n```\n"
        yield f"{_prose(value.__doc__)}\n"
        return
    if fields := list(_fields(value)):
        yield "```python\n" + "\n".join([f"class {name}:", *fields]) + "\n```\n"
    elif not dataclasses.is_dataclass(value) and "__init__" in vars(value):
        yield f"```python\n{_call(name, _function(value.__init__))}\n```\n"
    yield f"{_prose(value.__doc__)}\n"
    for member, found in _members(value):
        if isinstance(found, property):
            yield f"**`{member}`**: {_prose(found.__doc__)}\n"
        else:
            yield f"**`{_call(member, _function(found), wide=True)}`**\n\n{_prose(found.__doc__)}\n"


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public properties and methods with a docstring; of a ledger those that read."""
    wanted = (
        LEDGER
        if owner.__name__ == "Ledger"
        else [name for name in vars(owner) if not name.startswith("_") and name not in INNER]
    )
    for name in wanted:
        found = inspect.getattr_static(owner, name)
        found = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
        if (inspect.isfunction(found) or isinstance(found, property)) and found.__doc__:
            yield name, found


def _fields(owner: type) -> Iterator[str]:
    """The fields of a dataclass and the members of an enum, as they stand in the code."""
    if issubclass(owner, Enum):
        for member in owner:
            yield f'    {member.name} = "{member.value}"{_remark(owner, member.name)}'
    elif dataclasses.is_dataclass(owner):
        for item in dataclasses.fields(owner):
            if item.init and not item.name.startswith("_"):
                default = "" if item.default is dataclasses.MISSING else f" = {item.default!r}"
                yield f"    {item.name}: {item.type}{default}{_remark(owner, item.name)}"


def _remark(owner: type, name: str) -> str:
    """The comment at the end of the line that defines a field."""
    line = re.search(rf"^ +{name}\b[^\n]*?  #:? (?P<text>.+)$", inspect.getsource(owner), re.MULTILINE)
    return f"  # {line['text']}" if line else ""


def _function(value: Any) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _call(name: str, function: ast.FunctionDef, *, wide: bool = False) -> str:
    """A signature, one parameter a line where it is long."""
    parameters = list(_parameters(function.args))
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    result = result.removesuffix(" -> None")
    whole = f"{name}({', '.join(parameters)}){result}"
    if wide or len(whole) <= 80:
        return whole
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){result}"


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, [*defaults, *arguments.defaults], strict=True):
        if argument.arg not in ("self", "cls"):
            yield _parameter(argument, default)
    if arguments.vararg:
        yield f"*{_parameter(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(argument, default)
    if arguments.kwarg:
        yield f"**{_parameter(arguments.kwarg, None)}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    given = "" if default is None else ast.unparse(default).replace("'", '"')
    return f"{argument.arg}{kind}{' = ' if kind and given else '=' if given else ''}{given}"


def _errors() -> Iterator[str]:
    yield "| error | `code` | is a |\n|---|---|---|"
    for error in _tree(errors.AllocatorError):
        bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        yield f"| `{error.__name__}` | `{error.code}` | {bases} |"
    yield ""


def _tree(error: type[errors.AllocatorError]) -> Iterator[type[errors.AllocatorError]]:
    yield error
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown: marked names as code, an indented block behind ``::`` as text."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    told: list[str] = []
    for paragraph in paragraphs:
        if paragraph.strip() == "::":
            continue
        if paragraph.startswith("    "):
            told.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        else:
            told.append(_inline(paragraph.replace("::\n", ":\n") if not paragraph.endswith("::") else paragraph[:-1]))
    return "\n\n".join(told)


def _inline(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")
