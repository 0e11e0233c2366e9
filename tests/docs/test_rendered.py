"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from celery_allocator.ledger import scripts
from celery_allocator.settings import table
from tests.support.processes import ROOT


def _render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "cli.md", "keys.md", "events.md"])
def test_committed_page_is_what_the_code_says(name: str) -> None:
    committed = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert committed == _render().pages()[name], "run: python docs/render.py"


def test_every_setting_has_its_row() -> None:
    page = _render().settings()
    assert all(f"| `{row.name}` | `{row.env}` |" in page for row in table())


def test_an_event_without_a_meaning_cannot_be_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    render = _render()
    monkeypatch.delitem(render.EVENTS, "lost")
    with pytest.raises(ValueError, match="lost"):
        render.events()


def test_fields_of_an_event_are_found_over_several_lines() -> None:
    assert "`held_ms`" in _render().events()
    assert "release" in scripts.operations()
