"""``with lease(...)``: held, renewed, released."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from celery_allocator.allocating import Session
from celery_allocator.errors import (
    AllocationTimeout,
    AllocatorError,
    LedgerUnavailable,
    RequirementsError,
    UnsatisfiableError,
)
from celery_allocator.resource_allocator import lease
from tests.support import by_hand
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

WHOLE = {"gpu_memory_mb": by_hand.GPU_MB}


@pytest.fixture
def session(redis_server: RedisServer, pool: str) -> Session:
    return by_hand.session(redis_server, pool)


def outcomes(session: Session) -> list[str]:
    """How allocations ended, from the event stream."""
    return [event["outcome"] for _, event in session.ledger.events() if event.get("outcome")]


def test_a_lease_holds_while_the_block_runs(session: Session) -> None:
    with lease("t", "ml_inference", {"cpu_cores": 2}, session=session) as held:
        assert held.resources == {"gpu_id": "gpu_0", "gpu_memory_mb": 2048, "cpu_cores": [0, 1], "ram_mb": 4096}
        assert held.allocation.gpu_uuid == "GPU-sim-host1-0"
        assert [a.allocation_id for a in session.ledger.held()] == [held.allocation.allocation_id]
        assert not held.lost

    assert session.ledger.held() == ()
    assert outcomes(session) == ["success"]
    assert not [thread.name for thread in threading.enumerate() if "lease" in thread.name]


def test_a_block_that_raises_releases_too_and_does_not_count_as_a_run_time(session: Session) -> None:
    with pytest.raises(ZeroDivisionError), lease("t", "ml_inference", session=session):
        raise ZeroDivisionError

    assert session.ledger.held() == ()
    assert outcomes(session) == ["failure"]


def test_a_lease_renews_itself(session: Session) -> None:
    ttl_s = 3  # renewed at a third of it
    with lease("t", "ml_inference", ttl_s=ttl_s, session=session) as held:
        ends: set[float] = set()

        def renewed_often() -> bool:
            session.upkeep()
            end = session.ledger.get(held.allocation.allocation_id).expires_at
            assert end is not None
            ends.add(end)
            return max(ends) - min(ends) > 2 * ttl_s

        wait_until(renewed_often, 30, "renewals over two TTLs")
        assert not held.lost


def test_a_lease_that_was_taken_away_says_so(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "celery_allocator"),
        lease("t", "ml_inference", ttl_s=3, session=session) as held,
    ):
        session.ledger.cancel(held.allocation.allocation_id)
        wait_until(lambda: held.lost, 30, "the lease to notice")

    assert "the lease is lost" in caplog.text
    assert "was not released" in caplog.text


def test_a_lease_waits_for_room(session: Session) -> None:
    granted = threading.Event()
    with (
        lease("a", "ml_inference", WHOLE, session=session),
        lease("b", "ml_inference", WHOLE, session=session) as second,
    ):

        def wait_for_it() -> None:
            with lease("c", "ml_inference", WHOLE, session=session) as third:
                assert third.resources["gpu_id"] == second.resources["gpu_id"]
                granted.set()

        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        wait_until(session.ledger.queue, 30, "somebody in line")
        assert not granted.is_set()
        session.ledger.release(second.allocation.allocation_id)
        assert granted.wait(30)
        waiter.join()


def test_no_room_in_time_is_an_error_and_leaves_the_line(session: Session) -> None:
    with lease("a", "ml_inference", WHOLE, session=session), lease("b", "ml_inference", WHOLE, session=session):
        late = lease("c", "ml_inference", WHOLE, wait_s=0.1, session=session)
        with pytest.raises(AllocationTimeout, match="number 1 in line") as caught, late:
            pytest.fail("granted without room")

        assert isinstance(caught.value, TimeoutError)
        assert session.ledger.queue() == ()
        assert len(session.ledger.held()) == 2


@pytest.mark.parametrize(
    ("needs", "kind"),
    [({"gpu_memory_mb": by_hand.GPU_MB + 1}, UnsatisfiableError), ({"gpu_memory": 1}, RequirementsError)],
)
def test_what_cannot_be_had_raises(session: Session, needs: dict[str, int], kind: type[AllocatorError]) -> None:
    with pytest.raises(kind), lease("t", "ml_inference", needs, session=session):
        pytest.fail("granted")


def test_an_outage_shorter_than_the_ttl_does_no_harm(
    session: Session, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, calls = session.ledger.renew, []

    def flaky(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise LedgerUnavailable("gone for a moment")
        return renew(*args)

    monkeypatch.setattr(session.ledger, "renew", flaky)
    with lease("t", "ml_inference", ttl_s=3, session=session) as held:
        wait_until(lambda: len(calls) >= 3, 30, "renewals after the outage")
        assert not held.lost
    assert outcomes(session) == ["success"]


def test_an_outage_longer_than_the_ttl_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_args: Any) -> Any:
        raise LedgerUnavailable("gone for good")

    with lease("t", "ml_inference", ttl_s=0.3, session=session) as held:
        monkeypatch.setattr(session.ledger, "renew", gone)
        wait_until(lambda: held.lost, 30, "the lease to give itself up")


def test_a_lease_that_is_put_on_hold_while_it_waits_waits_on(session: Session) -> None:
    """It holds nothing: its block must not run before it does."""
    entered = threading.Event()

    def work() -> None:
        with lease("t", "ml_inference", WHOLE, ttl_s=6, session=session):
            entered.set()

    session.ledger.pause(stop=True)
    waiter = threading.Thread(target=work)
    waiter.start()
    wait_until(session.ledger.queue, 30, "somebody in line")
    name = session.ledger.queue()[0].allocation_id
    session.ledger.hold(name)
    session.ledger.pause(stop=False)
    first = session.ledger.get(name).expires_at
    wait_until(lambda: session.ledger.get(name).expires_at != first, 30, "a waiter that waits on")
    assert not entered.is_set()
    session.ledger.unhold(name)
    assert entered.wait(30)
    waiter.join()


def test_a_lease_that_is_on_hold_for_too_long_says_so(session: Session) -> None:
    def hold() -> None:
        wait_until(session.ledger.queue, 30, "somebody in line")
        session.ledger.hold(session.ledger.queue()[0].allocation_id)

    session.ledger.pause(stop=True)
    holder = threading.Thread(target=hold)
    holder.start()
    late = lease("t", "ml_inference", WHOLE, wait_s=5, session=session)
    with pytest.raises(AllocationTimeout, match="it was on hold by an operator"), late:
        pytest.fail("granted without room")
    holder.join()
    assert session.ledger.on_hold() == ()
