"""How the names of styles look, and the style sheet of the screen."""

from __future__ import annotations

from rich.text import Text

from celery_allocator.surfaces.terminal.bars import Pieces

STYLES = {
    "plain": "",
    "strong": "bold",
    "dim": "#8b93a1",
    "good": "#5fd3a2",
    "warning": "#e5b567",
    "bad": "bold #ff6b6b",
    "used": "#3fb68b",
    "over": "bold #ff6b6b",
    "unused": "#c9a24a",
    "leftover": "#b08f80",
    "foreign": "#b48ce0",
    "free": "#566070",
    "kept": "bold #7cc4ff",
}


def styled(pieces: Pieces) -> Text:
    """Pieces as text that is never read as markup."""
    return Text.assemble(*((text, STYLES[style]) for text, style in pieces), no_wrap=True)


CSS = """
Screen { background: #14171c; color: #d5dae3; }
#head { height: 2; background: #1f2733; padding: 0; }
#first { width: 1fr; }
#clock { width: auto; }
#notice { height: auto; max-height: 3; background: #5a3a12; color: #ffe3b3; display: none; padding: 0 1; }
#notice.-shown { display: block; }
Panel { height: 1fr; }
#devices { height: auto; max-height: 42%; }
#tenants { height: auto; max-height: 34%; display: none; }
#tenants.-shown { display: block; }
#tables.-zoomed Panel { display: none; }
#tables.-zoomed Panel:focus-within { display: block; height: 1fr; max-height: 100%; }
Panel > .bar { height: 1; background: #1b2129; color: #9fb4d0; }
Panel:focus-within > .bar { background: #264463; color: #ffffff; text-style: bold; }
Rows { height: 1fr; background: #14171c; scrollbar-size: 0 1;
       scrollbar-color: #3d4a5c; scrollbar-background: #14171c; scrollbar-color-hover: #5a6c86;
       scrollbar-gutter: stable; overflow-x: hidden; }
#devices Rows, #tenants Rows { height: auto; }
#tables.-zoomed #devices Rows, #tables.-zoomed #tenants Rows { height: 1fr; }
Rows > .datatable--header { background: #14171c; color: #7f8a9a; text-style: none; }
Rows > .datatable--cursor { background: #14171c; color: #d5dae3; text-style: none; }
Rows:focus > .datatable--cursor { background: #2f4f75; color: #ffffff; text-style: bold; }
.-plain Rows:focus > .datatable--cursor { text-style: reverse; }
.-plain Panel:focus-within > .bar { text-style: reverse; }
#detail { height: 3; background: #1b2129; color: #c3ccd9; padding: 0 1; }
#keys { height: 1; background: #1f2733; color: #9fb4d0; }
ModalScreen { align: center middle; background: #000000 50%; }
.window {
    width: 76; max-width: 96%; height: auto; max-height: 22; padding: 0 1;
    background: #1f2733; border: round #4b78a8;
}
.window VerticalScroll { height: auto; max-height: 16; }
.window .title { margin-bottom: 1; }
.window Input { margin: 0; border: round #4b78a8; background: #1f2733; }
.window VerticalScroll { scrollbar-size-vertical: 1; scrollbar-color: #3d4a5c; scrollbar-background: #1f2733; }
.fault { color: #ff6b6b; height: auto; }
"""
