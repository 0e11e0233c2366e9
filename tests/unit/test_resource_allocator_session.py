"""Which session a call without one gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest

from celery_allocator.allocating import Session, allocation, default_session, use_default
from celery_allocator.errors import LedgerUnavailable, UnsatisfiableError
from celery_allocator.settings import Settings


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No test sees another's default."""
    use_default(None)
    yield
    use_default(None)


def test_one_session_serves_every_call() -> None:
    assert default_session() is default_session()


def test_a_change_of_the_environment_counts_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    before = default_session()
    monkeypatch.setenv("ALLOCATOR_POOL", "other")

    assert default_session() is not before
    assert default_session().settings.pool == "other"


def test_an_app_may_give_the_session_and_take_it_back() -> None:
    mine = Session(Settings(pool="mine"))

    use_default(lambda: mine)
    assert default_session() is mine
    use_default(None)
    assert default_session().settings.pool == "default"


def test_the_factory_is_asked_once() -> None:
    made: list[Session] = []

    def make() -> Session:
        made.append(Session(Settings()))
        return made[-1]

    use_default(make)
    assert default_session() is default_session() is made[0]
    assert len(made) == 1


def test_after_an_outage_the_next_call_connects_anew() -> None:
    def connect() -> NoReturn:
        raise LedgerUnavailable("gone")

    use_default(lambda: Session(Settings(), connect_to=connect))
    before = default_session()

    assert allocation("alloc_1")["error"]["code"] == "ledger_unavailable"
    assert default_session() is not before


def test_only_a_missing_gpu_is_explained_by_simulated_ones() -> None:
    session = Session(Settings(devices="none", node="host1"))

    explained = session.explain(UnsatisfiableError("gpu_memory_mb", 5, 0))
    assert "host1" in str(explained) and "ALLOCATOR_DEVICES=sim:2x24576" in str(explained)
    for error in (UnsatisfiableError("gpu_memory_mb", 5, 4), UnsatisfiableError("ram_mb", 5, 0)):
        assert session.explain(error) is error
