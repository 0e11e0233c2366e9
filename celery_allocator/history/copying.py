"""The fast way into PostgreSQL: COPY, also where rows change (by a temporary table)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection as Driver
from sqlalchemy import Connection

from celery_allocator.history.records import COLUMNS
from celery_allocator.history.writer import EVENT_COLUMNS

_ALL = ("pool", *COLUMNS)
_COPY_EVENTS = f"COPY events ({', '.join(EVENT_COLUMNS)}) FROM STDIN"
_COPY_ALLOCATIONS = f"COPY allocations ({', '.join(_ALL)}) FROM STDIN"
_COPY_CHANGED = f"COPY allocator_changed ({', '.join(_ALL)}) FROM STDIN"
_MAKE_CHANGED = "CREATE TEMPORARY TABLE IF NOT EXISTS allocator_changed (LIKE allocations) ON COMMIT DELETE ROWS"
#: No column of an index among those that are set unless it changed: the server then need not touch the index.
_CHANGE = (
    f"UPDATE allocations AS a SET {', '.join(f'{name} = c.{name}' for name in COLUMNS[1:])} "  # noqa: S608 (names of columns)
    "FROM allocator_changed AS c WHERE a.pool = c.pool AND a.allocation_id = c.allocation_id"
)
_KNOWN = "SELECT event_id FROM events WHERE pool = %s AND event_id = ANY(%s)"
_LOAD = f"SELECT {', '.join(COLUMNS)} FROM allocations WHERE pool = %s AND allocation_id = ANY(%s)"  # noqa: S608


class PostgreSQL:
    """The dialect on psycopg's own connection, within SQLAlchemy's transaction."""

    def known(self, connection: Connection, pool: str, event_ids: Sequence[str]) -> set[str]:
        """Which of these events are there."""
        if not event_ids:
            return set()
        return {row[0] for row in _driver(connection).execute(_KNOWN, (pool, list(event_ids)))}

    def load(self, connection: Connection, pool: str, ids: Sequence[str]) -> Iterable[Sequence[Any]]:
        """Rows of allocations."""
        return _driver(connection).execute(_LOAD, (pool, list(ids))).fetchall() if ids else ()

    def add_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of events."""
        _copy(connection, _COPY_EVENTS, ((*row[:-1], json.dumps(row[-1])) for row in rows))

    def add_allocations(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of allocations."""
        _copy(connection, _COPY_ALLOCATIONS, rows)

    def change_allocations(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Replace rows of allocations."""
        driver = _driver(connection)
        driver.execute(_MAKE_CHANGED)
        _copy(connection, _COPY_CHANGED, rows)
        driver.execute(_CHANGE)


def _copy(connection: Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with _driver(connection).cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for row in rows:
            copy.write_row(row)


def _driver(connection: Connection) -> Driver[tuple[Any, ...]]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, Driver)
    return driver
