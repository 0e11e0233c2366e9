"""What turns these pages into a site: MkDocs calls the functions ``on_…`` while it builds.

- The navigation is made from the lists of ``index.md``: a heading is a section, a heading below it a part of that
  section, the first link of a list's item a page under the name it has there. Decision records follow their list.
- Comments for tests (``<!-- snippet: … -->``) are left out.
- A link to a file outside ``docs/`` leads to a page that shows this file: Markdown as a page, anything else as text.
  So the site needs no code host, and the Markdown reads well on one.
"""

# ruff: noqa: ARG001, INP001  # arguments are MkDocs', by name

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
INDEX = "index.md"
RECORDS = "decisions/README.md"
#: Where pages of files outside ``docs/`` are put.
SHOWN = "files"

_FENCED = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"^ *<!--.*?-->[^\S\n]*\n?", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
_ITEM = re.compile(r"- \[(?P<title>.+?)\]\((?P<target>[^)]+)\)")
_CELL = re.compile(r"<td>.*?</td>", re.DOTALL)
_CODE = re.compile(r"<code>[^<]*</code>")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".json": "json", ".sh": "bash"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation."""
    index = Path(config.docs_dir, INDEX)
    config.nav = navigation(index.read_text(encoding="utf-8"), sorted(_records(config)))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside ``docs/`` that a page leads to, and for those that these lead to."""
    texts = {f"{DOCS}/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    todo = list(texts)
    while todo:
        source = todo.pop()
        for target in sorted(set(_links(source, texts[source]))):
            if _inside(target) or target in texts:
                continue
            texts[target] = _as_page(target)
            files.append(
                File.generated(config, _uri(target), content=texts[target], inclusion=InclusionLevel.NOT_IN_NAV)
            )
            if target.endswith(".md"):
                todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out comments, and lead links to where their files stand in the site."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it would list this page alone
    source = _path(page.file.src_uri)

    def prose(text: str) -> str:
        return _LINK.sub(lambda link: _led(source, link), _COMMENT.sub("", text))

    return _outside_code(markdown, prose)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let names in the cells of tables break at their underscores, and nowhere else."""
    return _CELL.sub(lambda cell: _CODE.sub(lambda code: code[0].replace("_", "_<wbr>"), cell[0]), html)


def navigation(index: str, records: list[str]) -> list[Any]:
    """MkDocs' ``nav`` from the text of ``index.md``; ``records`` are put behind their list."""
    nav: list[Any] = [{"Home": INDEX}]
    section = part = nav
    for line in index.splitlines():
        if line.startswith("## "):
            section = part = []
            nav.append({line[3:].strip(): section})
        elif line.startswith("### "):
            part = []
            section.append({line[4:].strip(): part})
        elif (item := _ITEM.match(line)) is not None:
            target = posixpath.normpath(posixpath.join(DOCS, item["target"].partition("#")[0]))
            part.append({item["title"].replace("`", ""): _uri(target)})
            part += records if _uri(target) == RECORDS else []
    return nav


def _records(config: MkDocsConfig) -> Iterator[str]:
    for path in Path(config.docs_dir, RECORDS).parent.glob("[0-9]*.md"):
        yield f"{Path(RECORDS).parent.as_posix()}/{path.name}"


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """The text with everything but its fenced blocks changed."""
    return "".join(text if number % 2 else change(text) for number, text in enumerate(_FENCED.split(markdown)))


def _links(source: str, markdown: str) -> Iterator[str]:
    """Files that a page leads to, by their paths in the repository."""
    for text in _FENCED.split(markdown)[::2]:
        yield from (_target(source, link["target"]) for link in _LINK.finditer(text) if _is_file(link["target"]))


def _led(source: str, link: re.Match[str]) -> str:
    """A link as the site has it."""
    if not _is_file(link["target"]):
        return link[0]
    here, there = posixpath.dirname(_uri(source)), _uri(_target(source, link["target"]))
    return posixpath.relpath(there, here or ".") + (link["anchor"] or "")


def _is_file(target: str) -> bool:
    return ":" not in target and not target.startswith("/")


def _target(source: str, target: str) -> str:
    """The file of a relative link, by its path in the repository: of a folder, the page that describes it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    if path.startswith("..") or not (ROOT / path).is_file():
        raise PluginError(f"{source}: a link to {target}, which is not there")
    return path


def _inside(path: str) -> bool:
    """Whether a file is among the site's sources; the programs beside the pages are not (``exclude_docs``)."""
    return path.startswith(f"{DOCS}/") and not path.endswith(".py")


def _uri(path: str) -> str:
    """Where a file of the repository stands in the site's sources."""
    if _inside(path):
        return path.removeprefix(f"{DOCS}/")
    if not path.endswith(".md"):
        return f"{SHOWN}/{path}.md"
    # In small letters it is a page like others: of README.md MkDocs makes the front page of its part of the navigation.
    return f"{SHOWN}/{path.replace('README.md', 'readme.md')}"


def _path(uri: str) -> str:
    """The reverse of ``_uri``, for pages."""
    if not uri.startswith(f"{SHOWN}/"):
        return f"{DOCS}/{uri}"
    path = uri.removeprefix(f"{SHOWN}/").replace("readme.md", "README.md")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _as_page(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = _LANGUAGES.get(Path(path).suffix, "text")
    fence = "````" if "```" in text else "```"
    return f"# {posixpath.basename(path)}\n\n`{path}`\n\n{fence}{language}\n{text}{fence}\n"
