"""The history as readers open it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import URL, Engine, select
from sqlalchemy.orm import Session

from celery_allocator.errors import HistoryUnavailable
from celery_allocator.history.database import explained, file_of, history_backend_url, open_engine, shown
from celery_allocator.history.models import AllocationRow, Cursor, Event, Gap
from celery_allocator.history.schema import Schema
from celery_allocator.settings import Settings


class History:
    """One pool's history, for reading. It connects when first used; thread-safe. Close it, or use ``with``.

    Methods raise :class:`HistoryUnavailable` when the database cannot be reached or holds no history yet, and
    :class:`HistorySchemaError` when its tables are those of another version.
    """

    def __init__(self, url: URL, pool: str) -> None:
        self.pool = pool
        self._url = url
        self._engine: Engine | None = None
        self._checked = False
        self.schema = Schema(url)

    @property
    def url(self) -> str:
        """Where it is, without its password, for messages."""
        return shown(self._url)

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine."""
        if self._engine is None:
            path = file_of(self._url)
            if path is not None and not path.exists():  # SQLite would make an empty one
                raise HistoryUnavailable(f"there is no history at {path} yet: 'celery-allocator recorder' makes one")
            self._engine = open_engine(self._url, writes=False)
        return self._engine

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for reading; what it reads in one transaction stays readable after it."""
        with explained(self._url), Session(self.engine, expire_on_commit=False) as session:
            if not self._checked:
                self.schema.check(session.connection())
                self._checked = True
            yield session

    def close(self) -> None:
        """Close its connections."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- queries

    def allocation(self, allocation_id: str) -> AllocationRow | None:
        """One allocation."""
        with self.session() as session:
            return session.get(AllocationRow, (self.pool, allocation_id))

    def events_of(self, object_id: str) -> Sequence[Event]:
        """Everything that happened to an allocation, a node, a worker, oldest first."""
        query = select(Event).where(Event.pool == self.pool, Event.object_id == object_id).order_by(Event.ordinal)
        with self.session() as session:
            return session.scalars(query).all()

    def gaps(self) -> Sequence[Gap]:
        """Entries that were missed, oldest first."""
        with self.session() as session:
            return session.scalars(select(Gap).where(Gap.pool == self.pool).order_by(Gap.noticed_at)).all()

    def cursor(self) -> Cursor | None:
        """How far the recorder has come; ``None`` before it wrote anything."""
        with self.session() as session:
            return session.get(Cursor, self.pool)


def open_history(settings: Settings) -> History:
    """The history that these settings name. Nothing is connected to before it is used."""
    return History(history_backend_url(settings), settings.pool)
