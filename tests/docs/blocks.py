"""Code blocks of a Markdown page, and what the page says about how each is tried.

A page tells it in HTML comments, which readers do not see:

``<!-- page: needs=redis env="ALLOCATOR_DEVICES=sim:2x24576" -->``
    Once, at the top. ``needs``: ``redis`` or ``rabbitmq`` (comma-separated; a broker of this page alone, named to every
    command by ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``) or ``django``. ``env``: variables of every command.
``<!-- snippet: … -->``
    Before a block. ``file=PATH`` writes it; ``background until=TEXT`` leaves its one command running once it has
    written TEXT; ``output`` is what the block before it must have written; ``exit=N`` is its last command's exit code;
    ``dry-run`` gives ``make`` the option ``-n``; ``same-as=PATH`` must be that file's text, or a part of it, in the
    repository; ``drawing`` is for the eye; ``not-run="REASON"`` is a block that cannot run in a test.
``<!-- hidden: … -->``
    A console block that readers do not see.
``<!-- stop background -->``
    Ends what runs in the background.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

#: Languages that are run; any other block must say what it is.
RUNNABLE = ("python", "console")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")
_COMMENT = re.compile(r"^ *<!-- (?P<kind>page|snippet): (?P<text>.*) -->\s*$")
_KNOWN = {"file", "background", "until", "output", "exit", "dry-run", "same-as", "drawing", "not-run"}


@dataclass(frozen=True)
class Block:
    """One block: its first line's number, its language (``hidden`` ones are ``console``), text and directives."""

    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page: what it needs, its variables, and its blocks in order (``stop`` among them ends what runs)."""

    path: Path
    needs: tuple[str, ...]
    env: dict[str, str]
    blocks: tuple[Block, ...]


def read_page(path: Path) -> Page:
    """The blocks of a Markdown file. Raises ``ValueError``, naming the line, for one that says nothing of itself."""
    lines = path.read_text(encoding="utf-8").splitlines()
    page: dict[str, str] = {}
    marks: dict[str, str] = {}
    blocks: list[Block] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        fence, comment = _FENCE.match(line), _COMMENT.match(line)
        if comment is not None and comment["kind"] == "page":
            page = _marks(comment["text"])
        elif comment is not None:
            marks = _marks(comment["text"])
            if unknown := set(marks) - _KNOWN:
                raise ValueError(f"{path.name}:{number}: unknown in a snippet's comment: {', '.join(sorted(unknown))}")
        elif line.strip() == "<!-- stop background -->":
            blocks.append(Block(number, "stop", ""))
        elif line.strip() == "<!-- hidden:":
            end = lines.index("-->", number)
            blocks.append(Block(number + 1, "console", "\n".join(lines[number:end])))
            number = end + 1
        elif fence is not None:
            end = next(i for i in range(number, len(lines)) if lines[i].strip() == "```")
            text = "\n".join(item.removeprefix(fence["indent"]) for item in lines[number:end])
            block = Block(number + 1, fence["language"], text, marks)
            if block.language not in RUNNABLE and not marks:
                raise ValueError(f"{path.name}:{block.line}: a {block.language or 'plain'} block that says nothing")
            blocks.append(block)
            number, marks = end + 1, {}
    needs = tuple(filter(None, page.get("needs", "").split(",")))
    env = dict(item.split("=", 1) for item in page.get("env", "").split())
    return Page(path, needs, env, tuple(blocks))


def _marks(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in shlex.split(text))}


@dataclass(frozen=True)
class Command:
    """One command of a console block and the output shown under it ("" if none is)."""

    text: str
    shown: str


def commands(block: Block) -> list[Command]:
    """The commands of a console block: lines that begin with ``$ ``, continued by a backslash at the end."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif not found:
            raise ValueError(f"line {block.line}: a console block begins with '$ '")
        elif found[-1][0][-1].endswith("\\") and not found[-1][1]:
            found[-1][0].append(line)
        else:
            found[-1][1].append(line)
    return [Command("\n".join(text), "\n".join(shown).strip()) for text, shown in found]


def matches(shown: str, written: str) -> bool:
    """Whether ``written`` is what the page shows; ``…`` there stands for anything, blanks at line ends do not count."""
    pattern = ".*?".join(re.escape(part) for part in _tidy(shown).split("…"))
    return re.fullmatch(pattern, _tidy(written), re.DOTALL) is not None


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
