"""Tables as the screen shows them: columns that share its width, and rows drawn into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import Pieces

R = TypeVar("R")
#: Marks the device that is kept for the first in line, and that one.
KEPT = "◆"


@dataclass(frozen=True)
class Column(Generic[R]):
    """``width``: columns of the terminal it takes at least; ``grow``: its share of what is left over.

    ``cell`` draws a row at a time of the ledger's clock in so many; ``order`` is what rows are sorted by. ``since``: on
    screens that wide only.
    """

    head: str
    width: int
    cell: Callable[[R, float, int], Pieces]
    order: Callable[[R], Any]
    grow: int = 0
    right: bool = False
    since: int = 0


def widths(columns: Sequence[Column[R]], total: int) -> list[tuple[Column[R], int]]:
    """The columns that a screen of ``total`` shows, and how wide each is; one blank stands between two."""
    shown = [column for column in columns if total >= column.since]
    left = total - sum(column.width for column in shown) - (len(shown) - 1)
    shares = sum(column.grow for column in shown) or 1
    found = [(column, column.width + max(0, left) * column.grow // shares) for column in shown]
    rest = total - sum(width for _, width in found) - (len(shown) - 1)
    if rest > 0 and shown:
        column, width = found[-1]
        found[-1] = (column, width + rest)
    return found


def line(pieces: Pieces, width: int, *, right: bool = False) -> Pieces:
    """Pieces in exactly ``width`` columns."""
    taken = sum(words.cells(text) for text, _ in pieces)
    if taken <= width:
        blanks = (" " * (width - taken), "plain")
        return (blanks, *pieces) if right else (*pieces, blanks)
    found = []
    for text, style in pieces:
        kept = words.fit(text, min(words.cells(text), width))
        width -= words.cells(kept)
        found.append((kept, style))
    return tuple(found)


def plain(value: str, style: str = "plain") -> Pieces:
    """A text of whoever sent the task, harmless."""
    return ((words.clean(value), style),)
