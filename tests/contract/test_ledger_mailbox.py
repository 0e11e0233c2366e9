"""A device with a mailbox: the script that grants also delivers, into a list of the ledger's own server."""

from __future__ import annotations

from celery_allocator.ledger import Mailbox
from tests.support.ledger_pool import LedgerPool


def delivered(cluster: LedgerPool, key: str) -> list[bytes]:
    return list(reversed(cluster.ledger.client.lrange(key, 0, -1)))


def one_slot(cluster: LedgerPool) -> str:
    key = f"{cluster.ledger.pool}.box"
    cluster.node(slots=None)
    cluster.worker("n1", "gpu_0", slots=1, mailbox=Mailbox(key, "head:"))
    return key


def test_a_grant_at_submit_is_delivered_and_the_caller_told(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    granted, waiting = cluster.submit(100), cluster.submit(100)
    assert granted.delivered
    assert not waiting.delivered
    assert delivered(cluster, box) == [b"head:%dmessage of a1" % granted.allocation.token]


def test_a_grant_at_release_is_delivered_and_not_returned(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    first = cluster.running(100)
    cluster.submit(100)
    assert cluster.ledger.release(first.allocation_id, first.token, publishes=False).grants == ()
    token = cluster.ledger.get("a2").token
    assert delivered(cluster, box)[1:] == [b"head:%dmessage of a2" % token]


def test_a_grant_that_does_not_start_is_delivered_again_by_the_tick(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    cluster.submit(100)
    cluster.at += 10.1
    assert cluster.ledger.tick().grants == ()
    first, again = delivered(cluster, box)
    assert first == again


def test_the_next_worker_without_a_mailbox_has_its_grants_published(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    cluster.ledger.unregister_worker("w.n1.gpu_0", "one")
    cluster.worker("n1", "gpu_0", "two")
    assert not cluster.submit(100).delivered
    assert delivered(cluster, box) == []


def test_a_mailbox_that_cannot_be_written_leaves_it_to_the_caller(cluster: LedgerPool) -> None:
    box = one_slot(cluster)
    cluster.ledger.client.set(box, "not a list")
    first = cluster.submit(100)
    assert not first.delivered
    cluster.submit(100)
    released = cluster.ledger.release(first.allocation.allocation_id)
    assert [grant.allocation_id for grant in released.grants] == ["a2"]
