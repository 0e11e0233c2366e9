"""The screen of ``top``. It is fed by the watcher's thread, and what it does is done in another."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Static

from celery_allocator.allocating import Session
from celery_allocator.errors import AllocatorError
from celery_allocator.operations import Actor, Command, Effect, Operator
from celery_allocator.overview import Page as QueuePage
from celery_allocator.surfaces.terminal import words
from celery_allocator.surfaces.terminal.details import brief, facts
from celery_allocator.surfaces.terminal.dialogs import Confirm, Page, Search, help_page
from celery_allocator.surfaces.terminal.frame import VIEWS, Ask, Frame, look
from celery_allocator.surfaces.terminal.keys import ACTS, Act, acts_on, priority_of, subject
from celery_allocator.surfaces.terminal.panels import Panel
from celery_allocator.surfaces.terminal.styles import CSS
from celery_allocator.surfaces.terminal.tables import TABLES, head, notice
from celery_allocator.surfaces.terminal.watcher import Watcher


class Top(App[None]):
    """Devices, what runs, what waits. ``settle``: see :class:`~celery_allocator.operations.Operator`."""

    CSS = CSS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit"),
        Binding("ctrl+c", "quit", priority=True),
        Binding("question_mark", "help"),
        Binding("slash", "search"),
        Binding("escape", "all"),
        Binding("s", "sort"),
        Binding("r", "turn"),
        Binding("v", "view"),
        Binding("n", "page(1)"),
        Binding("b", "page(-1)"),
        Binding("z", "zoom"),
        Binding("t", "tenants"),
        Binding("space", "pause"),
        *(Binding(key, f"act('{key}')") for key in dict.fromkeys(act.key for act in ACTS)),
    ]

    class Seen(Message):
        """The watcher has looked."""

        def __init__(self, told: Frame | AllocatorError) -> None:
            super().__init__()
            self.told = told

    class Done(Message):
        """An action has been taken, or was refused."""

        def __init__(self, text: str, *, failed: bool) -> None:
            super().__init__()
            self.text, self.failed = text, failed

    def __init__(
        self,
        session: Session,
        actor: Actor,
        settle: Callable[[Effect], None] | None = None,
        *,
        ask: Ask | None = None,
        interval: float = 2.0,
        read_only: bool = False,
    ) -> None:
        # Without colours means none, not shades of grey.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self._session, self._actor, self._settle = session, actor, settle
        self._ask = ask or Ask()
        self._interval, self._read_only = interval, read_only
        #: The screen with the tables; windows may lie over it.
        self._main: Screen[Any] = Screen()
        self._frame: Frame | None = None
        self._away: AllocatorError | None = None
        self._watcher = Watcher(self._look, self._tell, self._ask, interval)

    # --- the screen

    def compose(self) -> ComposeResult:
        """Head, notice, tables, details of the selected row, keys."""
        with Vertical(id="head"):
            with Horizontal():
                yield Static("", id="first")
                yield Static("", id="clock")
            yield Static("", id="counts")
        yield Static("", id="notice")
        with Vertical(id="tables"):
            for table in TABLES:
                yield Panel(table)
        yield Static("", id="detail")
        yield Static("", id="keys")

    def on_mount(self) -> None:
        """Look for the first time."""
        self._main = self.screen
        self.set_class(self.no_color, "-plain")
        self._main.query_one("#queue", Panel).rows.focus()
        self._say("#first", " looking at the ledger …")
        self._watcher.start()
        self._show_keys()

    def on_unmount(self) -> None:
        """Look no more."""
        self._watcher.end()

    def on_top_seen(self, event: Seen) -> None:
        """Show what was seen, or that nothing was."""
        # While the screen is made or taken down it may have no parts.
        if not self._main.is_attached or not self._main.query("#first"):
            return
        if isinstance(event.told, Frame):
            self._frame, self._away = event.told, None
            for panel in self._main.query(Panel):
                panel.show(event.told)
        else:
            self._away = event.told
        self._show_head()
        self._show_detail()

    def on_top_done(self, event: Done) -> None:
        """Tell it, and look what has become of it."""
        self.notify(words.clean(event.text), severity="error" if event.failed else "information", markup=False)
        self._watcher.again()

    def on_data_table_row_highlighted(self, _: DataTable.RowHighlighted) -> None:
        """Another row is selected."""
        self._show_detail()

    def on_descendant_focus(self) -> None:
        """Another table is in use."""
        if not self._main.is_attached:
            return
        self._show_detail()
        self._show_keys()

    def on_data_table_row_selected(self, _: DataTable.RowSelected) -> None:
        """Enter: all there is to know."""
        row = None if self._panel is None else self._panel.selected
        if row is not None:
            self.push_screen(Page(words.clean(subject(row)[1]), facts(row)))

    # --- keys

    def action_help(self) -> None:
        """What the keys do."""
        self.push_screen(help_page(read_only=self._read_only))

    def action_search(self) -> None:
        """Ask for a text."""
        self.push_screen(Search(self._ask.text), self._search)

    def action_all(self) -> None:
        """No text, all tables."""
        self._main.query_one("#tables").remove_class("-zoomed")
        if self._ask.text:
            self._search("")

    def action_sort(self) -> None:
        """By the next column."""
        if self._panel is not None:
            self._panel.sort()

    def action_turn(self) -> None:
        """The other way round."""
        if self._panel is not None:
            self._panel.turn()

    def action_view(self) -> None:
        """What waits, is on hold, is delayed."""
        following = VIEWS[(VIEWS.index(self._ask.view) + 1) % len(VIEWS)]
        self._look_at(replace(self._ask, view=following, offset=0))

    def action_page(self, way: int) -> None:
        """Another page of what waits."""
        if self._frame is None:
            return
        # The line may have become shorter than where one stands.
        last = max(0, self._frame.page.matched - 1) // self._ask.limit * self._ask.limit
        offset = min(max(0, self._ask.offset + way * self._ask.limit), last)
        if offset != self._ask.offset:
            self._look_at(replace(self._ask, offset=offset))

    def action_zoom(self) -> None:
        """This table alone."""
        self._main.query_one("#tables").toggle_class("-zoomed")

    def action_tenants(self) -> None:
        """Their table, and back to the line."""
        tenants = self._main.query_one("#tenants", Panel)
        tenants.toggle_class("-shown")
        shown = tenants.has_class("-shown")
        (tenants if shown else self._main.query_one("#queue", Panel)).rows.focus()

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self._watcher.paused = not self._watcher.paused
        if not self._watcher.paused:
            self._watcher.again()
        self._show_head()

    def action_act(self, key: str) -> None:
        """Ask whether to do what the key stands for to the selected row."""
        panel = self._panel
        row = None if panel is None else panel.selected
        act = next((one for one in acts_on(panel.table.name) if one.key == key), None) if panel else None
        if act is None or row is None:
            return
        if self._read_only:
            self.notify("Nothing is changed from here: --read-only.", severity="warning", markup=False)
            return
        name, what = subject(row)

        def answered(answer: tuple[str, int] | None) -> None:
            if answer is not None:
                self._act(act, name, *answer)

        self.push_screen(Confirm(act, what, priority_of(row)), answered)

    # --- threads

    def _look(self, ask: Ask, page: QueuePage | None) -> Frame:
        if not self._read_only:
            self._session.upkeep()
        return look(self._session.ledger, ask, page)

    def _tell(self, told: Frame | AllocatorError) -> None:
        with suppress(RuntimeError):  # the screen has ended
            self.post_message(self.Seen(told))

    def _act(self, act: Act, name: str, reason: str, number: int) -> None:
        def run() -> None:
            try:
                command: Command = act.make(name, number)
                effect = Operator(self._session.ledger, replace(self._actor, reason=reason), self._settle).run(command)
                told = self.Done(f"{effect.text} (journal {effect.entry})", failed=False)
            except AllocatorError as error:
                told = self.Done(str(error), failed=True)
            except Exception as error:  # noqa: BLE001 (a broker that cannot be reached, say: the screen goes on)
                told = self.Done(f"{act.word}: {error}", failed=True)
            with suppress(RuntimeError):
                self.post_message(told)

        threading.Thread(target=run, name="action", daemon=True).start()

    # --- parts

    @property
    def _panel(self) -> Panel | None:
        """The table in use."""
        focused = self._main.focused
        return focused.parent if focused is not None and isinstance(focused.parent, Panel) else None

    def _search(self, text: str | None) -> None:
        if text is not None:
            self._look_at(replace(self._ask, text=text, offset=0))

    def _look_at(self, ask: Ask) -> None:
        self._ask = ask
        self._watcher.ask(ask)

    def _show_head(self) -> None:
        told = []
        if self._frame is not None:
            first, counts = head(self._frame)
            at = datetime.fromtimestamp(self._frame.now).astimezone().strftime("%H:%M:%S")
            text = f"  /{words.clean(self._frame.ask.text)}" if self._frame.ask.text else ""
            self._say("#first", f" {first}{text}")
            self._say("#clock", f"{'paused ' if self._watcher.paused else ''}{at} ")
            self._say("#counts", f" {counts}")
            told += [notice(self._frame)]
        if self._away is not None:
            told += [f"{words.clean(str(self._away))} (tried again every {self._interval:g} s)"]
        shown = "\n".join(filter(None, told))
        self._say("#notice", shown)
        self._main.query("#notice").set_class(bool(shown), "-shown")

    def _show_detail(self) -> None:
        if not self._main.is_attached:
            return
        row: Any = None if self._panel is None else self._panel.selected
        now = 0.0 if self._frame is None else self._frame.now
        self._say("#detail", "" if row is None else brief(row, now), wrap=True)

    def _show_keys(self) -> None:
        acts = () if self._panel is None or self._read_only else acts_on(self._panel.table.name)
        looking = [("?", "help"), ("/", "find"), ("s", "sort"), ("v", "view"), ("q", "quit")]
        text = Text(" ", no_wrap=True)
        for key, word in [*looking, *((act.key, act.word) for act in acts)]:
            text.append(key, "bold #ffffff").append(f" {word}  ")
        self._put("#keys", text)

    def _say(self, where: str, text: str, *, wrap: bool = False) -> None:
        self._put(where, Text(text, no_wrap=not wrap and where != "#notice"))

    def _put(self, where: str, text: Text) -> None:
        # A screen that is being taken down loses its parts one by one, while messages still come.
        for part in self._main.query(where).results(Static):
            part.update(text)
