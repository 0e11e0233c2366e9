"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

import celery_allocator
from celery_allocator.ledger import scripts
from celery_allocator.settings import table
from tests.support.processes import ROOT

REFERENCE = ROOT / "docs" / "reference"
COMMITTED = sorted(path.name for path in REFERENCE.glob("*.md") if "<!-- Rendered" in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def render() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("docs_render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))  # it imports the programs beside it
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_page_is_what_the_code_says(render: ModuleType, name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == render.pages()[name], "run: python docs/render.py"


def test_every_rendered_page_is_committed_and_says_so(render: ModuleType) -> None:
    pages = render.pages()
    assert sorted(pages) == COMMITTED
    assert all(text.startswith(render.NOTE) for text in pages.values())


def test_every_setting_has_its_row(render: ModuleType) -> None:
    page = render.settings()
    assert all(f"| `{row.name}` | `{row.env}` |" in page for row in table())


def test_every_name_of_the_package_has_its_entry(render: ModuleType) -> None:
    page = render.pages()["python.md"]
    assert all(f"### {name}\n" in page for name in celery_allocator.__all__ if name != "__version__")
    # From the signature, the docstring, a field's comment and the tree of errors.
    assert "wait_s: float = 0," in page
    assert "Waits up to `wait_s` seconds for room" in page
    assert 'ON_HOLD = "on_hold"  # keeps its place in line' in page
    assert "| `UnsatisfiableError` | `never_fits` |" in page


def test_an_event_without_a_meaning_cannot_be_rendered(render: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(render.EVENTS, "lost")
    with pytest.raises(ValueError, match="lost"):
        render.events()


def test_fields_of_an_event_are_found_over_several_lines(render: ModuleType) -> None:
    assert "`held_ms`" in render.events()
    assert "release" in scripts.operations()
