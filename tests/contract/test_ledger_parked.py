"""Messages that cannot be read are kept aside, told of, and decided about; they hold nothing meanwhile."""

from __future__ import annotations

import pytest

from celery_allocator.errors import AllocationNotFound, StaleTokenError
from celery_allocator.model import State
from tests.support.ledger_checks import assert_empty
from tests.support.ledger_pool import LedgerPool


@pytest.mark.parametrize("state", ["granted", "running", "waiting", "delayed"])
def test_parking_takes_it_from_where_it_is(cluster: LedgerPool, state: str) -> None:
    if state in ("granted", "running"):
        cluster.node(slots=1)
    else:
        cluster.node(slots=0)
    submitted = cluster.submit(2_000, eta_at=cluster.at + 50 if state == "delayed" else None).allocation
    if state == "running":
        cluster.start(submitted)
    behind = cluster.submit(2_000).allocation
    assert cluster.ledger.get("a1").state.value == state
    grants = cluster.ledger.park("a1", "no JSON")
    assert [g.allocation_id for g in grants] == ([behind.allocation_id] if state in ("granted", "running") else [])
    (parked,) = cluster.ledger.parked()
    assert (parked.allocation_id, parked.task_id, parked.reason) == ("a1", "task of a1", "no JSON")
    assert (parked.message, parked.parked_at) == (b"message of a1", cluster.at)
    assert cluster.ledger.find("task of a1") == ()


def test_its_caller_is_told_once_and_the_message_stays(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(2_000)
    cluster.ledger.park("a1", "no JSON")
    (obituary,) = cluster.ledger.tick().obituaries
    assert (obituary.allocation_id, obituary.outcome, obituary.reason) == ("a1", "parked", "no JSON")
    assert cluster.ledger.settle(["a1"]) == 1
    assert cluster.ledger.tick().obituaries == ()
    assert [p.message for p in cluster.ledger.parked()] == [b"message of a1"]


@pytest.mark.parametrize("settled", [True, False])
def test_an_operator_puts_it_into_line_again(cluster: LedgerPool, settled: bool) -> None:
    cluster.node()
    first = cluster.submit(2_000).allocation
    cluster.ledger.park("a1", "no JSON", first.token)
    if settled:
        cluster.ledger.settle(["a1"])
    (grant,) = cluster.ledger.unpark("a1", requeue=True)
    assert (grant.allocation_id, grant.message, grant.token > first.token) == ("a1", b"message of a1", True)
    assert cluster.ledger.find("task of a1")[0].state is State.GRANTED
    assert cluster.ledger.parked() == ()
    assert cluster.ledger.tick().obituaries == ()


def test_or_forgets_it(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(2_000)
    cluster.ledger.park("a1", "no JSON")
    assert cluster.ledger.unpark("a1", requeue=False) == ()
    assert cluster.ledger.parked() == ()
    assert [o.outcome for o in cluster.ledger.tick().obituaries] == ["parked"], "its caller has not been told yet"
    cluster.ledger.settle(["a1"])
    assert cluster.ledger.tick().obituaries == ()
    assert_empty(cluster.ledger)
    with pytest.raises(AllocationNotFound, match="no message of 'a1' is parked"):
        cluster.ledger.unpark("a1", requeue=True)


def test_only_the_live_grant_is_parked(cluster: LedgerPool) -> None:
    cluster.node()
    live = cluster.running(2_000)
    with pytest.raises(StaleTokenError):
        cluster.ledger.park("a1", "late", live.token - 1)
    assert cluster.ledger.get("a1") == live
    with pytest.raises(AllocationNotFound):
        cluster.ledger.park("nobody", "no JSON")
