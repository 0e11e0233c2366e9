"""From the setting to a database: its URL, its engine, and what its failures mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from celery_allocator.embedded import default_directory
from celery_allocator.errors import HistoryError, HistoryUnavailable, SettingsError
from celery_allocator.settings import Settings

FILE = "history.sqlite3"
#: Seconds to wait for a connection, and on SQLite for whoever writes.
CONNECT_TIMEOUT_S = 10
BUSY_TIMEOUT_S = 30


def history_url(settings: Settings) -> URL:
    """The history's database as SQLAlchemy takes it. Raises :class:`SettingsError`, without the URL."""
    if not settings.history_url:
        return URL.create("sqlite+pysqlite", database=str(default_directory(settings) / FILE))
    try:
        url = make_url(settings.history_url)
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
    """An engine that connects when first used. ``writes``: transactions on SQLite begin as those of a writer."""
    try:
        if url.get_backend_name() == "sqlite":
            return _sqlite(url, writes)
        return create_engine(
            url,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "celery-allocator"},
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
    """The URL for messages, without its password."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn the database's errors into :class:`HistoryUnavailable` for what may pass, else :class:`HistoryError`."""
    try:
        yield
    except DBAPIError as error:
        raise as_ours(url, error) from error
    except (SQLAlchemyError, OSError) as error:
        raise HistoryUnavailable(f"the history at {shown(url)} cannot be reached: {_line(error)}") from error


def as_ours(url: URL, error: DBAPIError) -> HistoryError:
    """A driver's error as one of ours."""
    passes = error.connection_invalidated or type(error.orig).__name__ in _PASSING or _refused_for_now(error)
    if passes:
        return HistoryUnavailable(f"the history at {shown(url)} cannot be reached: {_line(error.orig)}")
    return HistoryError(f"the history at {shown(url)} refuses: {_line(error.orig)}")


#: Classes of a driver's errors that a later try may not meet: no connection, shutting down, locked, disk full.
_PASSING = {
    "OperationalError",
    "InterfaceError",
    "AdminShutdown",
    "CrashShutdown",
    "CannotConnectNow",
    "ConnectionTimeout",
    "SerializationFailure",
    "DeadlockDetected",
    "LockNotAvailable",
    "QueryCanceled",
    "DiskFull",
    "TooManyConnections",
    "ReadOnlySqlTransaction",
    "IdleInTransactionSessionTimeout",
}


def _refused_for_now(error: DBAPIError) -> bool:
    """SQLSTATE classes 08 (connection), 40 (rollback), 53 (resources), 57 (intervention), 25006 (read-only)."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in ("08", "40", "53", "57") or state == "25006"


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
    return SettingsError(f"the history's URL (allocator_history_url, ALLOCATOR_HISTORY_URL) has {what}")
