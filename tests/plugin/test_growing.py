"""What a child does when its task runs out of GPU memory; the whole way is in tests/acceptance/test_isolation.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import Retry

from celery_allocator.errors import LedgerUnavailable
from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation
from celery_allocator.plugin import growing
from celery_allocator.plugin.envelope import HEADER
from celery_allocator.plugin.growing import grow
from celery_allocator.plugin.moved import GrantedAgain, MovedOn
from celery_allocator.plugin.running import GRANT
from celery_allocator.plugin.session import session
from tests.support.ledger_pool import LedgerPool


class OutOfMemoryError(RuntimeError):
    """PyTorch's."""

    __module__ = "torch"


def task_of(app: Celery, allocation: Allocation | None, **own: Any) -> Any:
    """A task that runs in this process."""
    header = {GRANT: allocation.to_wire()} if allocation else None
    return SimpleNamespace(app=app, name="work", request=SimpleNamespace(id="t", **{HEADER: header}), **own)


@pytest.fixture
def cluster(ledger_client: redis.Redis, pool: str) -> LedgerPool:
    cluster = LedgerPool(ledger_client, pool)
    cluster.node()
    return cluster


@pytest.fixture
def app(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    with Celery(set_as_current=False) as app:
        current = session(app)
        current._ledger, current._pid = cluster.ledger, os.getpid()
        # The fixture's pool has no mailboxes, so the child would publish.
        monkeypatch.setattr(growing, "publish_grants", lambda app, grants: None)
        yield app


def test_it_grows_as_the_settings_say_and_as_the_task_does(app: Celery, cluster: LedgerPool) -> None:
    app.conf.update(allocator_oom_growth=2.0, allocator_oom_retries=1)
    claim = cluster.running(1_000)
    with pytest.raises(GrantedAgain, match="2000 MB"):
        grow(task_of(app, claim), OutOfMemoryError("CUDA out of memory."))
    claim = cluster.start(cluster.ledger.get("a1"), nonce="again")
    error = OutOfMemoryError("CUDA out of memory.")
    grow(task_of(app, claim), error)
    assert "2000 MB" in "".join(getattr(error, "__notes__", ["2000 MB"])), "its own error, with a note"
    with pytest.raises(GrantedAgain):
        grow(task_of(app, claim, allocator_oom_retries=2), OutOfMemoryError("CUDA out of memory."))
    assert cluster.ledger.get("a1").gpu_memory_mb == 4_000


def test_what_else_a_task_raises_is_its_own(app: Celery, cluster: LedgerPool) -> None:
    claim, events = cluster.running(1_000), cluster.happened()
    retry = Retry(exc=OutOfMemoryError("CUDA out of memory."))
    retry.__cause__ = OutOfMemoryError("CUDA out of memory.")
    for error in (ValueError("of the model"), MemoryError(), retry):
        grow(task_of(app, claim), error)
    grow(task_of(app, None), OutOfMemoryError("CUDA out of memory."))
    grow(task_of(app, cluster.running(0, 1)), OutOfMemoryError("CUDA out of memory."))
    grow(task_of(app, claim, allocator_oom_retries=0), OutOfMemoryError("CUDA out of memory."))
    assert cluster.happened() == [*events, "granted", "started"]


def test_a_grant_that_is_not_the_live_one_has_moved_on(app: Celery, cluster: LedgerPool) -> None:
    claim = cluster.running(1_000, repeatable=True)
    cluster.ledger.release("a1", claim.token, "requeue")
    with pytest.raises(MovedOn, match="has moved on") as caught:
        grow(task_of(app, claim), OutOfMemoryError("CUDA out of memory."))
    assert not isinstance(caught.value, GrantedAgain)


def test_cut_off_from_the_ledger_it_asks_until_that_is_known(
    app: Celery, cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to the first call is lost; the second one finds that it was done."""
    claim, real, calls = cluster.running(1_000), Ledger.grow, []

    def once_lost(ledger: Ledger, *args: Any) -> Any:
        calls.append(args)
        grown = real(ledger, *args)
        if len(calls) == 1:
            raise LedgerUnavailable("the ledger cannot be reached")
        return grown

    monkeypatch.setattr(Ledger, "grow", once_lost)
    monkeypatch.setattr(growing, "_ASK_S", 0.0)
    with pytest.raises(MovedOn):
        grow(task_of(app, claim), OutOfMemoryError("CUDA out of memory."))
    assert len(calls) == 2
    assert cluster.ledger.get("a1").oom_retries == 1
