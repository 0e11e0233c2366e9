"""Commands that keep the history: recorder, and the versions of its tables."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from celery_allocator import history
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.ending import asked_to_end

if TYPE_CHECKING:
    from celery_allocator.history import Progress

#: Seconds between reports of progress, on a terminal and elsewhere.
_TERMINAL_S, _LINES_S = 0.5, 10.0


@click.command()
@click.option("--once", is_flag=True, help="Catch up with the ledger and end; do not wait for a server that is away.")
@json_option
@pass_console
def recorder(console: Console, *, once: bool, as_json: bool) -> None:
    """Record the ledger's events in the history (setting allocator_history_backend_url), until interrupted.

    Makes the tables, or brings them to this version. Several may run for one pool: one at a time records, the others
    stand by. With --json one object per report; with --once, one at the end.
    """
    report = _Report(as_json=as_json, quiet=once and as_json)
    made = history.Recorder(console.open_ledger, console.settings, on_progress=report)
    with asked_to_end() as stop:
        progress = made.run(stop, once=once, patient=not once)
    if as_json and once:
        print_json({"success": True, **asdict(progress)})
    else:
        report.last(progress)


class _Report:
    """Shows progress: on a terminal in one line that is written over, else by a line when there is something new."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not as_json
        self._said = (0.0, "")
        self._line = ""

    def __call__(self, progress: Progress) -> None:
        now, (then, state) = time.monotonic(), self._said
        if self._quiet or (progress.state == state and now - then < (_TERMINAL_S if self._terminal else _LINES_S)):
            return
        self._said = (now, progress.state)
        line = self._text(progress)
        if not (self._json or self._terminal) and line == self._line:
            return
        self._line = line
        self._write(progress, end="" if self._terminal else "\n")

    def last(self, progress: Progress) -> None:
        """The last word."""
        self._write(progress, end="\n")

    def _write(self, progress: Progress, end: str) -> None:
        if self._json:
            click.echo(json.dumps(asdict(progress)))
            return
        line = self._text(progress)
        click.echo(f"\r{line:<100}{end}" if self._terminal else line, err=True, nl=not self._terminal)

    def _text(self, progress: Progress) -> str:
        if progress.state == "standing by":  # where the one at work is, it cannot know
            return progress.state
        words = [
            progress.state,
            f"at {progress.position or 'the beginning'}",
            f"{progress.lag} behind",
            f"{progress.recorded} recorded",
            f"{progress.rate:.0f}/s",
            *([f"{progress.gaps} gaps, at least {progress.missed} entries missed"] if progress.gaps else []),
        ]
        return ", ".join(words)


@click.group("history-db")
def history_db() -> None:
    """The history's tables: their version, and up and down. A recorder brings them up by itself."""


@history_db.command()
@json_option
@pass_console
def current(console: Console, *, as_json: bool) -> None:
    """The version that the database has, and the one that this package reads and writes."""
    with history.open_history(console.settings) as opened:
        _tell(opened, opened.schema.current(), as_json=as_json)


@history_db.command()
@click.argument("version", default="head")
@json_option
@pass_console
def upgrade(console: Console, version: str, *, as_json: bool) -> None:
    """Make the tables, or bring them to VERSION (the newest, if none is given)."""
    with history.open_history(console.settings) as opened:
        _tell(opened, opened.schema.upgrade(version), as_json=as_json)


@history_db.command()
@click.argument("version")
@click.option("--yes", is_flag=True, help="Do not ask before.")
@json_option
@pass_console
def downgrade(console: Console, version: str, *, yes: bool, as_json: bool) -> None:
    """Take the tables back to VERSION; "base" removes them and all that they hold."""
    if not yes and as_json:
        raise click.UsageError("downgrade with --json cannot ask: add --yes")
    with history.open_history(console.settings) as opened:
        if not yes:
            lost = " and remove all of it" if version == "base" else ""
            click.confirm(f"Take the history at {opened.url} back to version {version}{lost}?", abort=True, err=True)
        _tell(opened, opened.schema.downgrade(version), as_json=as_json)


def _tell(opened: Any, found: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"success": True, "url": opened.url, "version": found, "newest": opened.schema.head})
    else:
        click.echo(f"{opened.url}: version {found or 'none yet'} (this package: {opened.schema.head})")


COMMANDS: tuple[click.Command, ...] = (recorder, history_db)
