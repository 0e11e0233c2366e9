"""Flower's templates with the tab in its navigation, and links to it from its pages; nothing on disk is changed.

Flower offers no place for either. Where a version has other templates, an anchor is not found and only the link lacks.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from tornado import template

_HERE = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

_TAB = """        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'allocator' %} active{% end %}"
            href="{{ reverse_url('allocator') }}"
            {% if active_tab == 'allocator' %}aria-current="page"{% end %}>Allocator</a>
        </li>
"""
_OF_TASK = """      <a class="btn btn-outline-secondary"
        href="{{ reverse_url('allocator') }}?text={{ url_escape(task.uuid) }}">Allocator</a>
"""
_OF_WORKER = """    <a class="btn btn-outline-secondary ms-auto me-2"
      href="{{ reverse_url('allocator') }}?text={{ url_escape(worker['name']) }}">Allocator</a>
"""
#: template → (what stands there once, what is put in, whether before or behind it)
_PATCHES = {
    "navbar.html": ('      </ul>\n\n      <ul class="app-nav app-nav-secondary', _TAB, "before"),
    "task.html": ('    <div class="detail-actions">\n', _OF_TASK, "behind"),
    "worker.html": ('    {% if not read_only %}\n    <div class="btn-group"', _OF_WORKER, "before"),
}


class Loader(template.Loader):
    """Loads Flower's templates, and ours beside them."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name if name == "allocator.html" else str(super().resolve_path(name, parent_path))

    def _create_template(self, name: str) -> template.Template:
        if name == "allocator.html":
            return template.Template((_HERE / name).read_text(encoding="utf-8"), name=name, loader=self)
        patch = _PATCHES.get(name)
        if patch is None:
            return super()._create_template(name)
        source = (Path(self.root) / name).read_text(encoding="utf-8")
        return template.Template(patched(source, *patch), name=name, loader=self)


def patched(source: str, anchor: str, addition: str, where: str) -> str:
    """``source`` with ``addition`` before or behind the ``anchor``; as it was, where that does not stand there once."""
    if source.count(anchor) != 1:
        return source
    return source.replace(anchor, addition + anchor if where == "before" else anchor + addition)


@functools.cache
def static_version() -> str:
    """Changes with the files, so that browsers load them anew after an upgrade."""
    digest = hashlib.sha256()
    for file in sorted(STATIC.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
