"""Completion in a shell of what stands in the ledger: nodes, devices, ids, names. Quick, and silent without a ledger.

A completed word is put into somebody's command line as it is, and names in the ledger are chosen by others. So only
words are offered in which no shell sees anything but letters.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from typing import Any

import click
from celery import Celery
from click.shell_completion import CompletionItem

from celery_allocator.embedded import EmbeddedServer, default_directory
from celery_allocator.ledger import Ledger, connect, resolve_url
from celery_allocator.model import Allocation, Kind, State
from celery_allocator.operations import describe
from celery_allocator.plugin.session import session as plugin_session
from celery_allocator.surfaces.cli.console import Console, load_app

#: Seconds for which a shell waits for the ledger.
_PATIENCE_S = 1.0
#: Words offered at most, and allocations that are read for them.
_MOST, _PAGE, _PAGES = 100, 500, 10
#: Letters and digits of any script, and what no shell gives a meaning to; no option either.
_PLAIN = re.compile(r"\w[\w.@/:+=%-]*")
_HELP_LENGTH = 60

#: A word and what it is.
Word = tuple[str, str]
Look = Callable[[Ledger], Iterable[Word]]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def completes(look: Look) -> Complete:
    """For ``shell_complete=`` of a parameter: the words that ``look`` finds in the ledger."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        found: dict[str, CompletionItem[str]] = {}

        def search() -> None:
            # Whatever goes wrong, a shell is no place to tell it.
            with suppress(Exception):
                ledger = _open(console)
                if ledger is None:
                    return
                with closing(ledger.client):
                    for word, what in look(ledger):
                        if word.startswith(incomplete) and _PLAIN.fullmatch(word) and word not in found:
                            found[word] = CompletionItem(word, help=_shown(what) or None)
                        if len(found) >= _MOST:
                            return

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            try:
                console = _console(ctx)
            except Exception:  # noqa: BLE001 (importing an app runs anything)
                return []
            searching = threading.Thread(target=search, daemon=True)
            searching.start()
            searching.join(_PATIENCE_S)
        return list(found.copy().values())

    return complete


def targets(ledger: Ledger) -> Iterator[Word]:
    """Nodes and devices."""
    for node in ledger.snapshot().nodes:
        yield node.node, node.state
        for device in node.devices:
            yield device.key, ", ".join(filter(None, (device.state, device.model)))


def ids(*lists: str, only: Callable[[Allocation], bool] = lambda _: True, tasks: bool = True) -> Look:
    """Ids of allocations, and with ``tasks`` of their tasks.

    ``lists``: methods of the ledger that list allocations in pages.
    """

    def look(ledger: Ledger) -> Iterator[Word]:
        for name in lists:
            for page in range(_PAGES):
                rows: tuple[Allocation, ...] = getattr(ledger, name)(_PAGE, page * _PAGE)
                for row in filter(only, rows):
                    told = f"{row.task_name}, {row.state.value.replace('_', ' ')}"
                    if tasks:
                        yield row.task_id, told
                    yield row.allocation_id, told
                if len(rows) < _PAGE:
                    break

    return look


def by_hand(allocation: Allocation) -> bool:
    """Whether it was made by hand."""
    return allocation.kind is Kind.MANUAL


def can_be_cancelled(allocation: Allocation) -> bool:
    """Whether a cancel would end it."""
    return by_hand(allocation) or allocation.state is not State.RUNNING


def task_names(ledger: Ledger) -> Iterator[Word]:
    """Names of tasks that run, wait or are set aside, and of breakers."""
    for name, what in broken_names(ledger):
        yield name, what
    for rows in (ledger.held(_PAGE), ledger.queue(_PAGE), ledger.delayed(_PAGE), ledger.on_hold(_PAGE)):
        for name in dict.fromkeys(row.task_name for row in rows):
            yield name, ""


def broken_names(ledger: Ledger) -> Iterator[Word]:
    """Names of tasks whose breaker is not closed."""
    for state in ledger.breakers():
        if state.allows is not None or state.aside:
            yield state.name, f"{state.aside} set aside"


def tenant_names(ledger: Ledger) -> Iterator[Word]:
    """Tenants that hold something, wait, or have a quota."""
    for state in ledger.tenants():
        yield state.name, f"{state.waiting} waiting"


def parked_ids(ledger: Ledger) -> Iterator[Word]:
    """Allocations whose message could not be read."""
    for parked in ledger.parked(_PAGE):
        yield parked.allocation_id, parked.task_name


def entries(*states: str) -> Look:
    """Numbers of the journal's entries in these states, latest first."""

    def look(ledger: Ledger) -> Iterator[Word]:
        for entry in ledger.journal(_MOST):
            if entry.state in states:
                yield str(entry.number), f"{describe(entry)}, by {entry.actor}"

    return look


def _console(ctx: click.Context) -> Console:
    """The console of the line so far; callbacks have not been run for it."""
    named: dict[str, Any] = {"app": None, "backend_url": None, "pool": None}
    found: click.Context | None = ctx
    while found is not None:
        named |= {name: found.params[name] for name in named if named[name] is None and found.params.get(name)}
        found = found.parent
    app = named["app"]
    return Console(
        app if app is None or isinstance(app, Celery) else load_app(app), named["backend_url"], named["pool"]
    )


def _open(console: Console) -> Ledger | None:
    """A client of the ledger; ``None`` if it is the embedded server and that does not run."""
    settings, app = console.settings, console.app
    if resolve_url(settings) is None and (app is None or plugin_session(app).is_embedded):
        server = EmbeddedServer(default_directory(settings))
        return connect(replace(settings, backend_url=server.url)) if server.status().running else None
    return console.open_ledger()


def _shown(text: str) -> str:
    kept = "".join(character if character.isprintable() else " " for character in text)
    return kept if len(kept) <= _HELP_LENGTH else kept[: _HELP_LENGTH - 1] + "…"
