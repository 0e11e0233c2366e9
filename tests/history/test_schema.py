"""Migrations, up and down on both databases, and what readers and recorders say of other versions."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from celery_allocator.errors import HistoryError, HistorySchemaError, HistoryUnavailable, SettingsError
from celery_allocator.history import History, Recorder, Schema, open_history
from celery_allocator.history.database import history_backend_url, open_engine
from celery_allocator.history.models import Base
from celery_allocator.history.schema import VERSION_TABLE
from celery_allocator.ledger import Ledger
from celery_allocator.settings import Settings
from tests.history.made import entry, grant, others, recorded, release, start, stored, submitted
from tests.history.test_writer import write


def tables(history: History) -> set[str]:
    engine = open_engine(history._url, writes=False)
    with engine.connect() as connection:
        names = set(inspect(connection).get_table_names())
    engine.dispose()
    return names - {VERSION_TABLE}


def test_up_and_down_and_up_again(history: History) -> None:
    schema = history.schema
    assert schema.current() is None
    for version in schema.versions():
        assert schema.upgrade(version) == version == schema.current()
    assert tables(history) == set(Base.metadata.tables)
    for version in [*schema.versions()[-2::-1], "base"]:
        assert schema.downgrade(version) == version
    assert schema.current() is None and tables(history) == set()
    assert schema.upgrade() == schema.head
    assert schema.upgrade() == schema.head


def test_the_migrations_make_what_the_models_say(history: History) -> None:
    history.schema.upgrade()
    engine = open_engine(history._url, writes=False)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_each_version_keeps_the_data_of_the_one_before(history: History) -> None:
    """Data written under a version is there, and read, under all later ones."""
    schema = history.schema
    first, *later = schema.versions()
    schema.upgrade(first)
    rows = Path(__file__).with_name(f"version_{first}.sql").read_text()
    engine = open_engine(history._url, writes=True)
    with engine.begin() as connection:
        for statement in rows.split(";\n"):
            if statement.strip():
                connection.execute(text(statement.replace(":", r"\:")))
    engine.dispose()
    for version in later:
        schema.upgrade(version)
    old = History(history._url, "old")
    assert [e.event for e in recorded(old)] == ["waiting", "granted", "started"]
    assert stored(old)["alloc_1"]["state"] == "running"
    # And it goes on from there.
    write(old, [release(9, "alloc_1")])
    assert stored(old)["alloc_1"]["outcome"] == "success"
    # Of what it could not tell then nothing is known, and no 0 is made up.
    assert stored(old)["alloc_1"]["grown"] is None and stored(old)["alloc_1"]["more"] is None
    old.close()
    for version in [*schema.versions()[-2::-1], "base"]:
        schema.downgrade(version)


def test_what_was_withheld_goes_with_the_version_that_knows_it(history: History) -> None:
    """Down and up again: the events stay, and what the older version can tell of devices."""
    history.schema.upgrade()
    write(history, [entry(1, "node", "n1", gpu_memory_mb="gpu_0:9000"), entry(2, "withheld", "n1", withheld_mb=5)])
    write(history, [entry(3, "withheld", "n1/gpu_0", withheld_mb=70, foreign_mb=70), submitted(4, shape="1:1:1:t")])
    found = others(history)
    assert [len(found[name]) for name in ("node_states", "device_states")] == [2, 2]
    history.schema.downgrade("0002")
    history.schema.upgrade()
    found = others(history)
    assert [len(found[name]) for name in ("node_states", "device_states")] == [1, 1]
    assert [e.event for e in recorded(history)] == ["node", "withheld", "withheld", "waiting"]
    assert stored(history)["a1"]["grown"] is None


def test_many_upgrade_at_once(history: History) -> None:
    barrier = threading.Barrier(6)

    def upgrade() -> str:
        schema = Schema(history._url)
        barrier.wait()
        return schema.upgrade()

    with ThreadPoolExecutor(6) as threads:
        assert {future.result() for future in [threads.submit(upgrade) for _ in range(6)]} == {history.schema.head}
    write(history, [submitted(0), grant(1), start(2)])
    assert set(stored(history)) == {"a1"}


def test_without_a_history_readers_say_what_makes_one(history: History) -> None:
    with pytest.raises(HistoryUnavailable, match="celery-allocator recorder"):
        history.gaps()
    history.schema.upgrade()
    history.schema.downgrade("base")
    with pytest.raises(HistoryUnavailable, match="history-db upgrade"):
        history.gaps()


@pytest.mark.parametrize(("version", "advice"), [("0000", "does not know"), ("later", "does not know")])
def test_another_version_is_refused(history: History, settings: Settings, version: str, advice: str) -> None:
    history.schema.upgrade()
    _set_version(history, version)
    with pytest.raises(HistorySchemaError, match=advice):
        history.gaps()

    def connect() -> Ledger:
        raise AssertionError("the recorder must not come so far")

    with pytest.raises(HistorySchemaError, match=advice):
        Recorder(connect, settings).run(threading.Event())
    with pytest.raises(HistorySchemaError, match="there is no version"):
        history.schema.upgrade("nonsense")


def test_an_older_version_is_refused_by_readers(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.schema.upgrade()
    monkeypatch.setattr(Schema, "head", "9999")
    with pytest.raises(HistorySchemaError, match="run 'celery-allocator history-db upgrade'"):
        history.gaps()


def _set_version(history: History, version: str) -> None:
    engine = open_engine(history._url, writes=True)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :v"), {"v": version})
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://me:secret@host/db", "postgresql://"),
        ("sqlite://", "no file"),
        ("not a url", "cannot be read"),
        ("postgresql://me:secret@host:port/db", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        history_backend_url(Settings(history_backend_url=url))
    assert "secret" not in str(raised.value)


def test_urls(tmp_path: Path) -> None:
    assert history_backend_url(Settings(history_backend_url="postgres://u:p@h/d")).drivername == "postgresql+psycopg"
    assert history_backend_url(Settings(embedded_dir=str(tmp_path))).database == str(tmp_path / "history.sqlite3")
    history = open_history(Settings(history_backend_url="postgresql://u:secret@127.0.0.1:1/d?connect_timeout=1"))
    assert "secret" not in history.url
    with pytest.raises(HistoryUnavailable) as raised:
        history.gaps()
    assert "secret" not in str(raised.value)
    with pytest.raises(HistoryError), open_history(Settings(history_backend_url=f"sqlite:///{tmp_path}")) as broken:
        broken.gaps()
