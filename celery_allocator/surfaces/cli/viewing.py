"""``top``: the pool on a whole terminal, live."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator

import click

from celery_allocator.errors import AllocatorError
from celery_allocator.operations import Actor
from celery_allocator.surfaces.cli.console import Console, pass_console, print_json
from celery_allocator.surfaces.cli.ending import until_interrupted
from celery_allocator.surfaces.terminal import plain
from celery_allocator.surfaces.terminal.frame import Ask, Frame, look

#: Modules that come with the extra ``top``.
_EXTRA = ("rich", "textual")
#: Columns where there is no terminal.
_WIDTH = 120


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Print one frame as plain text and end; also what no terminal gets.")
@click.option("--filter", "text", default="", metavar="TEXT", help="Only what has TEXT in a name or an id.")
@click.option("--read-only", is_flag=True, help="Only look: no keys that change anything.")
@click.option("--actor", metavar="NAME", help="Who acts, for the journal (default: user@host).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object per look and line; with --once, one.")
@pass_console
def top(
    console: Console, interval: float, text: str, actor: str | None, *, once: bool, read_only: bool, as_json: bool
) -> None:
    """Devices, what runs and what waits, live on the whole terminal; with keys to act (? lists them).

    What is done there is journalled, as with the commands.
    """
    console.actor = Actor(actor, "cli") if actor else Actor.of_process("cli")
    ask = Ask(text=text)
    if as_json and not once:
        with until_interrupted():
            _stream(console, ask, interval)
    elif as_json:
        _print_json(console, ask)
    elif once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        width = shutil.get_terminal_size((_WIDTH, 0)).columns
        click.echo(plain.drawn(_look(console, ask), width))
    else:
        _run(console, ask, interval, read_only=read_only)


def _look(console: Console, ask: Ask) -> Frame:
    console.session.upkeep()
    return look(console.ledger, ask)


def _print_json(console: Console, ask: Ask) -> None:
    try:
        frame = _look(console, ask)
    except AllocatorError as error:
        print_json({"success": False, "error": error.as_dict()})
        raise
    print_json(frame.as_dict())


def _stream(console: Console, ask: Ask, interval: float) -> None:
    for _ in _beats(interval):
        try:
            told = _look(console, ask).as_dict()
        except AllocatorError as error:  # it comes back, and the stream goes on
            told = {"success": False, "error": error.as_dict()}
        click.echo(json.dumps(told))


def _beats(interval: float) -> Iterator[None]:
    while True:
        began = time.monotonic()
        yield
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def _run(console: Console, ask: Ask, interval: float, *, read_only: bool) -> None:
    try:
        from celery_allocator.surfaces.terminal.app import Top
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise click.ClickException(
            f"{error.name} is missing: the live view needs  pip install 'celery-allocator[top]'  (--once does not)"
        ) from None
    assert console.actor is not None
    Top(console.session, console.actor, console.settles, ask=ask, interval=interval, read_only=read_only).run()


COMMANDS: tuple[click.Command, ...] = (top,)
