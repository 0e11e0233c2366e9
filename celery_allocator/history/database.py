"""From the setting to a database: its URL, its engine, and what its failures mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from celery_allocator.embedded import default_directory
from celery_allocator.errors import HistoryError, HistoryUnavailable, SettingsError
from celery_allocator.settings import Settings

FILE = "history.sqlite3"
#: Seconds to wait for a connection, and on SQLite for whoever writes.
CONNECT_TIMEOUT_S = 10
BUSY_TIMEOUT_S = 30
#: As libpq takes them: a server that vanished without a word is noticed within about a minute.
_TIMEOUTS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def history_backend_url(settings: Settings) -> URL:
    """The history's database as SQLAlchemy takes it. Raises :class:`SettingsError`, without the URL."""
    if not settings.history_backend_url:
        return URL.create("sqlite+pysqlite", database=str(default_directory(settings) / FILE))
    try:
        url = make_url(settings.history_backend_url)
    except (ArgumentError, ValueError):
        raise _malformed("a form that cannot be read") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if not url.database or url.database == ":memory:":
            raise _malformed("no file: sqlite:////absolute/path.sqlite3")
        return url.set(drivername="sqlite+pysqlite")
    raise _malformed(f"the scheme {url.drivername!r}: there are postgresql:// and sqlite:///")


def open_engine(url: URL, *, writes: bool) -> Engine:
    """An engine that connects when first used. ``writes``: transactions on SQLite begin as those of a writer.

    Raises :class:`SettingsError` for options of the URL that no driver knows.
    """
    try:
        if url.get_backend_name() == "sqlite":
            return _sqlite(url, writes)
        return create_engine(
            url,
            pool_pre_ping=True,
            connect_args={"application_name": "celery-allocator", **_TIMEOUTS},
        )
    except (ArgumentError, NoSuchModuleError, TypeError) as error:
        raise _malformed(f"an option that is not known ({type(error).__name__})") from None


def file_of(url: URL) -> Path | None:
    """The file of an SQLite database; ``None`` for a server's."""
    if url.get_backend_name() != "sqlite":
        return None
    assert url.database is not None
    return Path(url.database).absolute()


def shown(url: URL) -> str:
    """The URL for messages, without its password: libpq takes it (and a key's) among the options, too."""
    secret = {name: "***" for name in url.query if "password" in name.lower()}
    return url.update_query_dict(secret).set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn the database's errors into :class:`HistoryUnavailable` for what may pass, else :class:`HistoryError`."""
    try:
        yield
    except DBAPIError as error:
        raise _as_ours(url, error.orig or error) from error
    except psycopg.Error as error:  # from the driver itself
        raise _as_ours(url, error) from error
    except (SQLAlchemyError, OSError) as error:
        raise HistoryUnavailable(f"the history at {shown(url)} cannot be reached: {_line(error)}") from error


def _as_ours(url: URL, error: BaseException) -> HistoryError:
    # What is neither of these is a mistake, and no later try will do better.
    if isinstance(error, _PASSING) and not str(error).startswith(_FOR_GOOD):
        return HistoryUnavailable(f"the history at {shown(url)} cannot be reached: {_line(error)}")
    return HistoryError(f"the history at {shown(url)} refuses: {_line(error)}")


#: No connection, shutting down, locked, out of disk or memory, read-only for now.
_PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
    sqlite3.OperationalError,
)
#: What SQLite says of a mistake under the same name.
_FOR_GOOD = ("no such", "near ", "table ", "unable to open")


def _sqlite(url: URL, writes: bool) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # The driver would begin and commit transactions by rules of its own; also around DDL.
        connection.isolation_level = None
        cursor: sqlite3.Cursor = connection.cursor()
        if writes:
            cursor.execute("PRAGMA journal_mode = WAL")
        # What was acknowledged to the ledger must be on the disk.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _line(error: object) -> str:
    return " ".join(str(error).split())[:500]


def _malformed(what: str) -> SettingsError:
    return SettingsError(f"the history's URL (allocator_history_backend_url, ALLOCATOR_HISTORY_BACKEND_URL) has {what}")
