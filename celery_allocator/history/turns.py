"""One recorder at a time: on PostgreSQL a lock of the very connection that writes, on SQLite a lock beside the file.

Either ends with its holder, however that ends: no lease has to run out, and a recorder that was paused for long
does not wake up to write beside another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Connection, text

from celery_allocator.embedded.place import try_lock
from celery_allocator.history.copying import PostgreSQL
from celery_allocator.history.database import explained, file_of, open_engine
from celery_allocator.history.schema import Schema
from celery_allocator.history.writer import AnyDatabase, Writer


def recorder_name() -> str:
    """This process, for people: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def turns_to_write(url: URL, pool: str, schema: Schema) -> Iterator[Callable[[], Writer | None]]:
    """A function that asks for the turn: it returns a writer, or ``None`` while somebody else has it.

    Once taken, the turn lasts until the end of the context. All is done on one connection. Raises
    :class:`HistoryUnavailable`, and :class:`HistorySchemaError` if the tables are not those that it writes.
    """
    engine = open_engine(url, writes=True)
    path = file_of(url)
    try:
        with explained(url), engine.connect() as connection:
            if path is None:
                yield lambda: _writer(connection, pool, schema) if _locked(connection, pool) else None
                return
            lock = path.with_name(f"{path.name}.{_digest(pool):x}.recorder")
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                yield lambda: _writer(connection, pool, schema) if try_lock(descriptor) else None
            finally:
                # Closing is not enough: a child that was forked meanwhile has it open, too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)
    finally:
        engine.dispose()  # closes the connection, and so gives the lock back


def _writer(connection: Connection, pool: str, schema: Schema) -> Writer:
    with connection.begin():
        schema.check(connection)
    dialect = PostgreSQL() if connection.dialect.name == "postgresql" else AnyDatabase()
    return Writer(connection, pool, dialect, recorder_name())


def _locked(connection: Connection, pool: str) -> bool:
    with connection.begin():
        return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _digest(pool)}))


def _digest(pool: str) -> int:
    """A number for the pool's lock, positive and below 2^63."""
    return int.from_bytes(hashlib.sha256(f"celery-allocator recorder {pool}".encode()).digest()[:7], "big")
