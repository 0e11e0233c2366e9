"""A frame as plain text, for a file, a pipe or a reader of screens."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from celery_allocator.surfaces.terminal.bars import legend
from celery_allocator.surfaces.terminal.frame import Frame
from celery_allocator.surfaces.terminal.tables import DEVICES, SHARES, TABLES, Table, flat, head, notice

#: Rows of one table at most.
_MOST = 500


def drawn(frame: Frame, width: int) -> str:
    """The whole frame in ``width`` columns."""
    return "\n".join(line.rstrip() for line in _lines(frame, width))


def _lines(frame: Frame, width: int) -> Iterator[str]:
    at = datetime.fromtimestamp(frame.now).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    first, counts = head(frame)
    yield f"{first}  {at}"
    yield counts
    if told := notice(frame):
        yield told
    for table in TABLES:
        if table is SHARES and not frame.overview.outlook.is_shared:
            continue
        yield ""
        yield from _table(table, frame, width)
        if table is DEVICES:
            yield flat(legend())


def _table(table: Table[Any], frame: Frame, width: int) -> Iterator[str]:
    rows = table.rows(frame, frame.ask.text)
    yield table.title(frame, len(rows))
    if not rows:
        return
    yield " ".join(text for text, _ in table.heads(width))
    for row in rows[:_MOST]:
        yield " ".join(flat(cell) for cell in table.cells(row, frame.now, width))
    if len(rows) > _MOST:
        yield f"and {len(rows) - _MOST:,} more"
