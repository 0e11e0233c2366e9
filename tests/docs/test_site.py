"""The documentation as a site: built without a warning, and whole without any other host."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.docs_site import build, built
from tests.support.page import Page
from tests.support.processes import ROOT

#: What loads something, by element and attribute. ``<a href>`` loads nothing before it is clicked.
LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("docs").resolve() / "site")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def _attributes(page: Page, *names: str) -> list[str]:
    return [told[name] or "" for _, told in page.elements for name in names if name in told]


def test_every_page_of_the_docs_is_in_the_site(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(sources) > 50
    named = {path: path.with_name("index.html" if path.stem == "README" else f"{path.stem}.html") for path in sources}
    assert not [path for path, page in named.items() if not (site / page).exists()]
    assert not list(site.rglob("*.py")), "the pages' own programs are not part of the site"


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    anchors = {path: set(_attributes(page, "id", "name")) for path, page in pages.items()}
    followed = [
        (path, target)
        for path, page in pages.items()
        if path.name != "404.html"  # its links are the server's
        for target in _attributes(page, "href", "src")
        if not urlsplit(target).scheme
    ]
    assert len(followed) > 3000
    broken = [
        f"{path.relative_to(site)}: {target}" for path, target in followed if not _leads(path, target, site, anchors)
    ]
    assert not broken, broken


def _leads(path: Path, target: str, site: Path, anchors: dict[Path, set[str]]) -> bool:
    address = urlsplit(target)
    file = (path.parent / unquote(address.path)).resolve() if address.path else path
    if address.netloc or not file.is_relative_to(site) or not file.is_file():
        return False
    return not address.fragment or unquote(address.fragment) in anchors.get(file, {unquote(address.fragment)})


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    foreign = [
        f"{path.relative_to(site)}: {told[LOADS[tag]]}"
        for path, page in pages.items()
        for tag, told in page.elements
        if urlsplit(told.get(LOADS.get(tag, ""), None) or "").netloc
    ]
    assert not foreign
    # Pictures can name fonts, too.
    sheets = [*site.rglob("*.css"), *site.rglob("*.svg")]
    assert len(sheets) >= 5
    fetched = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")
    assert not [sheet for sheet in sheets if fetched.search(sheet.read_text(encoding="utf-8"))]


def test_comments_for_tests_are_left_out(site: Path, pages: dict[Path, Page]) -> None:
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<!-- (snippet|page|hidden|stop)", text), path


def test_no_markdown_is_left_in_the_pages(site: Path, pages: dict[Path, Page]) -> None:
    """What a code host takes for a list, MkDocs has to take for one, too: it wants an empty line before it."""
    left = re.compile(r"^(?:<p>)?(?:[-*] |\d+\. |\|[-|: ]+\|$|#+ |!?\[.*\]\()", re.MULTILINE)
    ours = [path for path in pages if not path.is_relative_to(site / "files")]
    assert len(ours) > 50
    for path in ours:
        text = re.sub(r"<pre.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not left.findall(text), path.relative_to(site)


def test_files_outside_the_docs_are_shown(site: Path) -> None:
    text = (site / "files" / "configs" / "redis.conf.html").read_text(encoding="utf-8")
    assert "maxmemory-policy" in text
    assert (site / "files" / "CONTRIBUTING.html").exists()


def test_the_search_knows_every_page(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"howto/gpu-box.html", "glossary.html", "files/configs/redis.conf.html"} <= found
    # What is searched without a server.
    assert (site / "search" / "search_index.js").exists()


def test_the_navigation_is_made_from_the_lists_of_the_index() -> None:
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "site_hook.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    index = (
        "# Title\n\n## One\n\n- [A `b`](a.md): more, and [c](c.md)\n\n### Part\n\n- [C](../CHANGELOG.md)\n\n## Two\n"
    )
    index += "\n- [All](decisions/README.md)\n"
    assert hook.navigation(index, ["decisions/0001.md"]) == [
        {"Home": "index.md"},
        {"One": [{"A b": "a.md"}, {"Part": [{"C": "files/CHANGELOG.md"}]}]},
        {"Two": [{"All": "decisions/README.md"}, "decisions/0001.md"]},
    ]


def _stray_page(root: Path) -> str:
    (root / "docs" / "howto" / "stray.md").write_text("# Stray\n", encoding="utf-8")
    return "howto/stray.md"


def _broken_link(root: Path) -> str:
    with (root / "docs" / "glossary.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    return "nowhere.md"


def _broken_anchor(root: Path) -> str:
    with (root / "docs" / "glossary.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](versions.md#nowhere)\n")
    return "#nowhere"


def _missing_file(root: Path) -> str:
    (root / "configs" / "redis.conf").unlink()
    return "redis.conf"


@pytest.mark.parametrize("spoil", [_stray_page, _broken_link, _broken_anchor, _missing_file])
def test_a_site_that_is_wrong_is_not_built(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "__pycache__")
    shutil.copytree(ROOT, root, ignore=ignored)
    assert build(tmp_path / "right", root).returncode == 0
    complaint = spoil(root)
    done = build(tmp_path / "wrong", root)
    assert done.returncode != 0
    assert complaint in done.stderr
