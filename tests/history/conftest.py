"""Databases for the history: each test has one of its own, on SQLite and on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from celery_allocator.history import History, open_history
from celery_allocator.settings import Settings
from tests.support.postgres_server import PostgresServer


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database on the session's PostgreSQL."""
    name = f"history_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield postgres_server.url.rpartition("/")[0] + f"/{name}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.sqlite3'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def settings(database_url: str, pool: str) -> Settings:
    """Settings of a history that keeps everything: the ledgers of tests live in the past."""
    return Settings(history_backend_url=database_url, pool=pool, history_days=0)


@pytest.fixture
def history(settings: Settings) -> Iterator[History]:
    """The history as readers open it."""
    with open_history(settings) as opened:
        yield opened
