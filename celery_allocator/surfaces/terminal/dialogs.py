"""Windows over the tables: a question before something is changed, a text to look for, help, details."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from celery_allocator.model import FIELDS
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.bars import legend
from celery_allocator.surfaces.terminal.columns import KEPT
from celery_allocator.surfaces.terminal.keys import ACTS, LOOKING, Act
from celery_allocator.surfaces.terminal.styles import styled

#: Longest reason that the journal takes.
_REASON = 255


class Confirm(ModalScreen[tuple[str, int] | None]):
    """Asks for a reason (and a number, where the action takes one); ``None``: it is not to be done."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "leave", "Leave")]

    def __init__(self, act: Act, what: str, now: int | None) -> None:
        super().__init__()
        self._act, self._what, self._now = act, what, now

    def compose(self) -> ComposeResult:
        """Title, what it does, fields."""
        with Vertical(classes="window"):
            yield Static(Text(f"{self._act.word.capitalize()} {words.clean(self._what)}?", "bold"), classes="title")
            yield Static(Text(self._act.warning))
            if self._act.number:
                yield Input(str(self._now or 0), id="number", type="integer", max_length=5, placeholder="priority")
            yield Input(id="reason", max_length=_REASON, placeholder="Why? (for the journal; may stay empty)")
            yield Static("", id="fault", classes="fault")
            yield Static(Text("Enter: do it   Esc: leave it", "dim"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter: on to the next field, or done."""
        if event.input.id == "number":
            self.query_one("#reason", Input).focus()
            return
        reason = event.value
        if not reason.isprintable():
            self._fault("The reason has characters that cannot be recorded.")
            return
        number = self._number()
        if number is not None:
            self.dismiss((reason, number))

    def action_leave(self) -> None:
        """Do nothing."""
        self.dismiss(None)

    def _number(self) -> int | None:
        if not self._act.number:
            return 0
        bounds, text = FIELDS["priority"], self.query_one("#number", Input).value
        try:
            number = int(text)
        except ValueError:
            number = bounds.maximum + 1
        if bounds.minimum <= number <= bounds.maximum:
            return number
        self._fault(f"{text!r} is no whole number from {bounds.minimum} to {bounds.maximum}.")
        self.query_one("#number", Input).focus()
        return None

    def _fault(self, text: str) -> None:
        self.query_one("#fault", Static).update(Text(text))


class Search(ModalScreen[str | None]):
    """Asks for a text to look for."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "leave", "Leave")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """One field."""
        with Vertical(classes="window"):
            yield Static(Text("Show only what has this in a name or an id", "bold"), classes="title")
            yield Input(self._text, max_length=_REASON, placeholder="nothing: all")
            yield Static(Text("Enter: look   Esc: as before", "dim"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter."""
        self.dismiss(event.value.strip())

    def action_leave(self) -> None:
        """As before."""
        self.dismiss(None)


class Page(ModalScreen[None]):
    """A text to read; any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "leave", "Close"),
        ("enter", "leave", "Close"),
        ("q", "leave", "Close"),
        ("question_mark", "leave", "Close"),
    ]

    def __init__(self, title: str, rows: list[tuple[str, str]], after: Text | None = None) -> None:
        super().__init__()
        self._title, self._rows, self._after = title, rows, after

    def compose(self) -> ComposeResult:
        """Names and values, one below the other."""
        with Vertical(classes="window page"):
            yield Static(Text(self._title, "bold"), classes="title")
            with VerticalScroll():
                yield Static(self._listed())
                if self._after is not None:
                    yield Static(self._after)
            yield Static(Text("Esc: close", "dim"))

    def action_leave(self) -> None:
        """Close it."""
        self.dismiss(None)

    def _listed(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, value in self._rows:
            grid.add_row(Text(name, "bold"), Text(value))
        return grid


def help_page(*, read_only: bool) -> Page:
    """What the keys do, and the marks mean."""
    acting = [(act.key, f"{act.word} ({'device' if 'devices' in act.tables else 'task'})") for act in ACTS]
    rows = [*LOOKING, *([] if read_only else acting)]
    marks = (*legend(), (KEPT, "kept"), (" kept for the first in line; that one", "dim"))
    return Page("Keys", [*rows, ("?", "this page")], Text("\n") + styled(marks))
