"""What every command has at hand: the app (if any), settings and ledger; and how failures leave the process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click
from celery import Celery
from celery.app.utils import find_app

from celery_allocator.allocating import Session
from celery_allocator.allocating.command import json_text
from celery_allocator.errors import (
    AllocatorError,
    HistoryQueryError,
    LabelError,
    RequirementsError,
    SettingsError,
    TraceError,
)
from celery_allocator.ledger import Grant, Ledger, Obituary, connect
from celery_allocator.operations import Actor, Effect, Operator
from celery_allocator.plugin import is_installed
from celery_allocator.plugin.outcome import take_effect, write_results
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.session import session as plugin_session
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli.ending import no_signal_lost

EXIT_FAILED, EXIT_USAGE = 1, 2

F = TypeVar("F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """An error of ours as click shows it: one line on standard error, and an exit code."""

    exit_code = EXIT_FAILED

    def __init__(self, error: AllocatorError) -> None:
        super().__init__(str(error))


class Misuse(Failure):
    """The same, where the call itself was wrong."""

    exit_code = EXIT_USAGE


class Group(click.Group):
    """A group whose commands may raise :class:`AllocatorError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn our errors into click's."""
        try:
            with no_signal_lost():
                return super().invoke(ctx)
        except AllocatorError as error:
            misuse = isinstance(error, (SettingsError, RequirementsError, LabelError, TraceError, HistoryQueryError))
            raise (Misuse if misuse else Failure)(error) from error


class Console:
    """One invocation. ``app`` is the Celery app that was named, or ``None``."""

    def __init__(self, app: Celery | None, backend_url: str | None = None, pool: str | None = None) -> None:
        self.app = app
        self._backend_url = backend_url
        self._pool = pool
        self._session: Session | None = None
        #: In whose name commands change something; see :func:`acting`.
        self.actor: Actor | None = None

    @property
    def settings(self) -> Settings:
        """From the command line, the environment and the app, in this order."""
        return self.session.settings

    @property
    def session(self) -> Session:
        """Settings and ledger; made when first needed, so that ``--help`` connects to nothing."""
        if self._session is None:
            self._session = self.fresh_session()
        return self._session

    def fresh_session(self) -> Session:
        """Another session of that sort, with a connection of its own."""
        conf = None if self.app is None else self.app.conf
        settings = Settings.load(conf=conf, backend_url=self._backend_url, pool=self._pool)
        return Session(settings, connect_to=functools.partial(self._connect, settings), actor=self.actor)

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self.session.ledger

    @property
    def command(self) -> str:
        """What to type to reach the same ledger, for advice."""
        return "celery-allocator" if self.app is None else "celery -A proj allocator"

    @property
    def publishes(self) -> bool:
        """Whether Celery messages can be published and results written from here: only with an app that allocates."""
        return self.app is not None and is_installed(self.app)

    def publish(self, grants: Iterable[Grant]) -> None:
        """Publish grants if that can be done from here; else the next tick of a worker does."""
        if self.app is not None and self.publishes:
            publish_grants(self.app, grants)

    def settle(self, obituary: Obituary | None) -> None:
        """Write the result of a cancelled task if that can be done from here; else the next tick of a worker does."""
        if self.app is not None and self.publishes and obituary is not None:
            write_results(self.app, [obituary])

    @property
    def operator(self) -> Operator:
        """Acts on the ledger in the name of :attr:`actor`."""
        actor = self.actor or Actor.of_process("cli")
        return Operator(self.ledger, actor, self.settles)

    @property
    def settles(self) -> Callable[[Effect], None] | None:
        """Publishes the grants and writes the results of an effect; ``None`` where that cannot be done from here."""
        return functools.partial(take_effect, self.app) if self.app is not None and self.publishes else None

    def open_ledger(self) -> Ledger:
        """A client of the ledger of its own, for a thread or a loop that closes it."""
        if self.app is None or self._backend_url is not None:
            return connect(self.settings)
        return plugin_session(self.app).connect(self.settings)

    def _connect(self, settings: Settings) -> Ledger:
        if self.app is None or self._backend_url is not None:
            return connect(settings)
        of_app = plugin_session(self.app)
        return of_app.ledger if of_app.settings.pool == settings.pool else of_app.connect(settings)


def open_console(ctx: click.Context, app: str | None, backend_url: str | None, pool: str | None) -> None:
    """Put a :class:`Console` where the commands find it. Under ``celery -A proj`` the app has been loaded already."""
    outer = getattr(ctx.obj, "app", None)
    ctx.obj = Console(load_app(app) if app else outer, backend_url, pool)


def load_app(name: str) -> Celery:
    """The app that ``-A name`` means. Raises :class:`click.UsageError` saying why it cannot be had."""
    try:
        found: Celery = find_app(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.UsageError(f"the app {name!r} cannot be loaded: {error}") from error
    return found


pass_console = click.make_pass_decorator(Console)


def json_option(command: F) -> F:
    """Add ``--json``: with it, a failure too is JSON on standard output."""

    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> Any:
        try:
            return command(*args, as_json=as_json, **kwargs)
        except AllocatorError as error:
            if as_json:
                print_json({"success": False, "error": error.as_dict()})
            raise

    option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    result: F = option(wrapped)  # type: ignore[assignment]
    return result


def acting(command: F) -> F:
    """Add ``--actor`` and ``--reason``, for the journal, to a command that changes something."""

    @functools.wraps(command)
    @click.pass_obj
    def wrapped(console: Console, /, *args: Any, actor: str | None, reason: str, **kwargs: Any) -> Any:
        console.actor = Actor(actor, "cli", reason) if actor else Actor.of_process("cli", reason)
        return command(*args, **kwargs)

    by = click.option("--actor", metavar="NAME", help="Who does it, for the journal (default: user@host).")
    why = click.option("--reason", default="", metavar="TEXT", help="Why, for the journal.")
    result: F = by(why(wrapped))  # type: ignore[assignment]
    return result


def print_json(data: Mapping[str, Any] | list[Any]) -> None:
    """JSON on standard output."""
    click.echo(json_text(data, 2))
