"""A device with a mailbox: the script that grants also delivers, into a list of the ledger's own server."""

from __future__ import annotations

import pytest

from celery_allocator.ledger import Mailbox, Submitted
from tests.support.ledger_pool import LedgerPool


def delivered(cluster: LedgerPool, key: str) -> list[bytes]:
    return list(reversed(cluster.ledger.client.lrange(key, 0, -1)))


def one_slot(cluster: LedgerPool) -> str:
    key = f"{cluster.ledger.pool}.box"
    cluster.node(slots=None)
    cluster.worker("n1", "gpu_0", slots=1, mailbox=Mailbox(key, "head:"))
    return key


def submit(cluster: LedgerPool) -> Submitted:
    """A task whose message begins and ends as packed ones do."""
    name = f"a{len(cluster.ledger.held()) + len(cluster.ledger.queue()) + 1}"
    return cluster.submit(100, id=name, message=f", of {name}}}".encode())


def test_a_grant_at_submit_is_delivered_and_the_caller_told(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    granted, waiting = submit(cluster), submit(cluster)
    assert granted.delivered
    assert not waiting.delivered
    assert delivered(cluster, box) == [b"head:%d, of a1}" % granted.allocation.token]


def test_a_grant_at_release_is_delivered_and_not_returned(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    first = cluster.start(submit(cluster).allocation)
    submit(cluster)
    assert cluster.ledger.release(first.allocation_id, first.token, publishes=False).grants == ()
    token = cluster.ledger.get("a2").token
    assert delivered(cluster, box)[1:] == [b"head:%d, of a2}" % token]


def test_a_grant_that_does_not_start_is_delivered_again_by_the_tick(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    submit(cluster)
    cluster.at += 10.1
    assert cluster.ledger.tick().grants == ()
    first, again = delivered(cluster, box)
    assert first == again


def test_the_next_worker_without_a_mailbox_has_its_grants_published(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    cluster.worker("n1", "gpu_0", "two")
    assert not submit(cluster).delivered
    assert delivered(cluster, box) == []


def test_a_mailbox_that_cannot_be_written_leaves_it_to_the_caller(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    cluster.ledger.client.set(box, "not a list")
    first = submit(cluster)
    assert not first.delivered
    submit(cluster)
    released = cluster.ledger.release(first.allocation.allocation_id)
    assert [grant.allocation_id for grant in released.grants] == ["a2"]


@pytest.mark.parametrize("message", [b"no message at all", b", cut sho", b"}", b", "])
def test_what_is_no_message_is_not_put_where_it_would_end_a_worker(cluster: LedgerPool, message: bytes) -> None:
    box = one_slot(cluster)
    assert not cluster.submit(100, message=message).delivered
    assert delivered(cluster, box) == []
    cluster.at += 10.1
    assert [grant.message for grant in cluster.ledger.tick().grants] == [message]
