"""The version of the history's tables: which there is, and up and down by Alembic.

Versions stand in ``migrations/versions``. Their table is named for this package, so that a database can be shared with
something else that uses Alembic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, text

from celery_allocator.embedded.place import turn
from celery_allocator.errors import EmbeddedServerError, HistorySchemaError, HistoryUnavailable
from celery_allocator.history.database import explained, file_of, open_engine, shown

VERSION_TABLE = "allocator_history_version"
#: Seconds to wait for whoever changes the same tables.
_TURN_S = 120.0
#: Number of the advisory lock that PostgreSQL keeps for that. Any number that nobody else uses.
_LOCK = 0x616C6C6F63_01


class Schema:
    """The tables of one history's database."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._config = Config()
        self._config.set_main_option("script_location", str(files(__package__) / "migrations").replace("%", "%%"))
        self._script = ScriptDirectory.from_config(self._config)

    @property
    def head(self) -> str:
        """The version that this package reads and writes."""
        head = self._script.get_current_head()
        assert head is not None
        return head

    def versions(self) -> list[str]:
        """All versions that this package knows, oldest first."""
        return [script.revision for script in self._script.walk_revisions()][::-1]

    def current(self) -> str | None:
        """The version that the database has; ``None`` if it holds no history. Raises :class:`HistoryUnavailable`."""
        path = file_of(self._url)
        if path is not None and not path.exists():
            return None
        engine = open_engine(self._url, writes=False)
        try:
            with explained(self._url), engine.connect() as connection:
                return version_of(connection)
        finally:
            engine.dispose()

    def upgrade(self, version: str = "head") -> str:
        """Bring the tables to ``version``; several may try at once. Returns the version that there is then.

        Raises :class:`HistorySchemaError` if they are newer than this package.
        """
        return self._change(command.upgrade, version)

    def downgrade(self, version: str) -> str:
        """Take the tables back to ``version``; ``base`` removes them with all that they hold."""
        return self._change(command.downgrade, version)

    def check(self, connection: Connection) -> None:
        """Raise :class:`HistorySchemaError` unless the tables are those that this package reads."""
        found = version_of(connection)
        if found == self.head:
            return
        if found is None:
            raise HistoryUnavailable(
                f"{shown(self._url)} holds no history yet: 'celery-allocator recorder' makes one, or "
                "'celery-allocator history-db upgrade' its tables"
            )
        self._refuse_unknown(found)
        raise HistorySchemaError(
            f"the history at {shown(self._url)} has version {found}, and this version of celery-allocator reads "
            f"{self.head}: run 'celery-allocator history-db upgrade' (a recorder does it by itself)"
        )

    def _refuse_unknown(self, found: str | None) -> None:
        if found is not None and found not in self.versions():
            raise HistorySchemaError(
                f"the history at {shown(self._url)} has version {found}, which this version of celery-allocator "
                f"(up to {self.head}) does not know: upgrade celery-allocator here, or run 'celery-allocator "
                "history-db downgrade' with the newer one"
            )

    def _change(self, change: Any, version: str) -> str:
        if version not in ("head", "base", *self.versions()):
            raise HistorySchemaError(f"there is no version {version!r}: there are {', '.join(self.versions())}")
        engine = open_engine(self._url, writes=True)
        try:
            with self._turn(), explained(self._url), engine.connect() as connection, connection.begin():
                if connection.dialect.name == "postgresql":
                    # Until the end of the transaction, which the changes are part of.
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                self._refuse_unknown(version_of(connection))
                self._config.attributes["connection"] = connection
                change(self._config, version)
                return version_of(connection) or "base"
        finally:
            self._config.attributes.pop("connection", None)
            engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """On SQLite whoever changes the tables holds a lock beside the file, whose folder is made here."""
        path = file_of(self._url)
        if path is None:
            yield
            return
        with explained(self._url):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with turn(path.with_name(f"{path.name}.schema"), _TURN_S):
                yield
        except EmbeddedServerError as error:
            raise HistoryUnavailable(f"another process changes the history's tables for long: {path}") from error


def version_of(connection: Connection) -> str | None:
    """The version that the database has; ``None`` if it holds no history."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_heads()
    return found[0] if found else None
