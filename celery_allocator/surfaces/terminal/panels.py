"""A table of the screen: its bar with a title, and its rows."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.widgets import DataTable, Static

from celery_allocator.surfaces.terminal.bars import Pieces, legend
from celery_allocator.surfaces.terminal.frame import Frame
from celery_allocator.surfaces.terminal.styles import styled
from celery_allocator.surfaces.terminal.tables import DEVICES, Sorting, Table


class Rows(DataTable[Text]):
    """The rows themselves."""

    BINDINGS: ClassVar[list[BindingType]] = [("home", "scroll_top", "First"), ("end", "scroll_bottom", "Last")]


class Panel(Vertical):
    """One table. Rows are drawn when a frame comes, when the window changes, and when they are sorted.

    A row that is selected stays so wherever it moves to.
    """

    def __init__(self, table: Table[Any]) -> None:
        super().__init__(id=table.name)
        self.table = table
        self.sorting = Sorting()
        self._frame: Frame | None = None
        self._rows: dict[str, Any] = {}
        self._drawn: list[list[Pieces]] = []
        self._heads: list[tuple[str, int]] = []

    def compose(self) -> ComposeResult:
        """Bar and rows."""
        yield Static("", classes="bar")
        yield Rows(cell_padding=0, cursor_type="row", cursor_foreground_priority="renderable", header_height=1)

    @property
    def rows(self) -> Rows:
        """Its rows."""
        return self.query_one(Rows)

    @property
    def selected(self) -> Any:
        """What the selected row stands for; ``None`` if there is none."""
        index = self.rows.cursor_row
        keys = list(self._rows)
        return self._rows[keys[index]] if 0 <= index < len(keys) else None

    def show(self, frame: Frame) -> None:
        """Show a frame."""
        self._frame = frame
        self._draw()

    def sort(self) -> None:
        """By the next column; after the last one, as the ledger has it."""
        by = self.sorting.by
        following = 0 if by is None else by + 1
        last = following >= len(self.table.columns)
        self.sorting = Sorting(None if last else following, self.sorting.reverse)
        self._draw()

    def turn(self) -> None:
        """The other way round."""
        self.sorting = Sorting(self.sorting.by, not self.sorting.reverse)
        self._draw()

    def on_resize(self, _: Resize) -> None:
        """Columns share the new width."""
        self._draw()

    def _draw(self) -> None:
        frame = self._frame
        if frame is None or self.size.width < 2:
            return
        width = self.size.width - 1  # the scrollbar's place
        rows = self.table.rows(frame, frame.ask.text)
        self.query_one(".bar", Static).update(self._titled(self.table.title(frame, len(rows))))
        keyed = {self.table.key(row): row for row in self.table.sorted(rows, self.sorting)}
        drawn = [self.table.cells(row, frame.now, width) for row in keyed.values()]
        heads = self.table.heads(width, self.sorting)
        if heads == self._heads and list(keyed) == list(self._rows):
            self._change(drawn)
        else:
            self._renew(list(keyed), drawn, heads)
        self._rows, self._drawn, self._heads = keyed, drawn, heads

    def _titled(self, title: str) -> Text:
        """The title; with what the marks mean, where there is room for it."""
        text, marks = Text(f" {title}", no_wrap=True), styled(legend())
        if self.size.width - text.cell_len - marks.cell_len < 2:
            marks = styled(legend(narrow=True))
        gap = self.size.width - text.cell_len - marks.cell_len
        return text if self.table is not DEVICES or gap < 2 else text.append(" " * gap).append_text(marks)

    def _change(self, drawn: list[list[Pieces]]) -> None:
        for key, old, new in zip(self._rows, self._drawn, drawn, strict=True):
            for column, (before, after) in enumerate(zip(old, new, strict=True)):
                if before != after:
                    self.rows.update_cell(key, str(column), styled(after))

    def _renew(self, keys: list[str], drawn: list[list[Pieces]], heads: list[tuple[str, int]]) -> None:
        rows = self.rows
        before, index, top = list(self._rows), rows.cursor_row, rows.scroll_offset.y
        chosen = before[index] if 0 <= index < len(before) else None
        with self.app.batch_update():
            if heads != self._heads:
                rows.clear(columns=True)
                for number, (text, width) in enumerate(heads):
                    gap = 0 if number == len(heads) - 1 else 1
                    rows.add_column(Text(text, no_wrap=True), width=width + gap, key=str(number))
            else:
                rows.clear()
            for key, cells in zip(keys, drawn, strict=True):
                rows.add_row(*(styled(cell) for cell in cells), key=key)
            if keys:
                row = keys.index(chosen) if chosen in keys else min(max(index, 0), len(keys) - 1)
                rows.scroll_to(y=top, animate=False)
                rows.move_cursor(row=row, animate=False)
