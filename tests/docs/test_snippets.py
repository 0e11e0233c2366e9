"""Every snippet of the README and of ``docs/`` does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import Block, Page, commands, matches, read_page
from tests.docs.trial import trial
from tests.support.processes import ROOT

#: How a page begins that is rendered from the code; another test holds it to that.
RENDERED = "<!-- Rendered from the code"
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if not path.read_text(encoding="utf-8").startswith(RENDERED)
]
WITH_BLOCKS = [path for path in PAGES if read_page(path).blocks]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", WITH_BLOCKS, ids=_name)
def test_page(path: Path, tmp_path: Path) -> None:
    page = read_page(path)
    with trial(page, tmp_path) as tried:
        tried.run()
        tried.stop_background()


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = {
        f"{_name(path)}:{block.line}": block.marks["not-run"]
        for path in PAGES
        for block in read_page(path).blocks
        if "not-run" in block.marks
    }
    assert all(len(reason.split()) >= 3 for reason in left_out.values()), left_out
    # Another one needs a reason as good as these; one that can run now lowers the number.
    assert len(left_out) == NOT_RUN, left_out


NOT_RUN = 13


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in PAGES:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
                broken.append(f"{_name(path)}: {target}")
    assert not broken, broken


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- the runner itself: it must be able to fail


def _page(tmp_path: Path, text: str) -> Page:
    path = ROOT / "README.md"
    source = tmp_path / "page.md"
    source.write_text(text, encoding="utf-8")
    read = read_page(source)
    return Page(path, read.needs, read.env, read.blocks)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "the page shows"),
        ("```console\n$ false\n```\n", "exit code 1, not 0"),
        ("<!-- snippet: exit=3 -->\n```console\n$ exit 4\n```\n", "exit code 4, not 3"),
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("```python\nprint(1)\n```\n\n<!-- snippet: output -->\n```text\n2\n```\n", "the page shows"),
        ("<!-- snippet: same-as=Makefile -->\n```text\nnothing of it\n```\n", "not the text of"),
        ("<!-- snippet: background until=ready -->\n```console\n$ echo steady\n```\n", "ended with 0 before 'ready'"),
    ],
)
def test_a_page_that_is_wrong_fails(tmp_path: Path, text: str, complaint: str) -> None:
    with trial(_page(tmp_path, text), tmp_path / "trial") as tried, pytest.raises(AssertionError, match=complaint):
        tried.run()


def test_a_page_that_is_right_passes(tmp_path: Path) -> None:
    text = (
        '<!-- page: env="GREETING=hello" -->\n'
        "<!-- snippet: file=said.txt -->\n```text\nby the page\n```\n"
        "```python\nx = 1\n```\n```python\nassert x == 1\n```\n"
        "```console\n$ echo $GREETING; \\\n  cat said.txt\nhello\nby the …\n$ true\n```\n"
        "<!-- snippet: background until=up -->\n```console\n$ sh -c 'echo up; exec sleep 60'\n```\n"
        "<!-- stop background -->\n<!-- hidden:\n$ ! pgrep -g $$ sleep\n-->\n"
    )
    with trial(_page(tmp_path, text), tmp_path / "trial") as tried:
        tried.run()


@pytest.mark.parametrize("text", ["```text\nunexplained\n```\n", "<!-- snippet: outptu -->\n```text\nx\n```\n"])
def test_a_block_must_say_what_it_is(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"says nothing|unknown"):
        _page(tmp_path, text)


def test_shown_output_may_leave_parts_open() -> None:
    assert matches("a … c\nd", "a b c\nd\n")
    assert not matches("a … c", "a b c\nmore")
    assert commands(Block(1, "console", "$ one \\\n  two\nout"))[0].shown == "out"
