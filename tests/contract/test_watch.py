"""Following changes: from where one stopped, for as long as one likes, and never over a gap without saying so."""

from __future__ import annotations

import json
import threading
from itertools import islice

import pytest
import redis

from celery_allocator.errors import ChangesMissed, RequestError
from celery_allocator.ledger import Options
from celery_allocator.updates import Relay, watch
from tests.support.ledger_pool import LedgerPool
from tests.support.waiting import wait_until


def _milliseconds(cluster: LedgerPool) -> int:
    seconds, micros = cluster.ledger.client.time()
    return int(seconds * 1000 + micros // 1000)


def short(cluster: LedgerPool) -> None:
    """A stream that keeps next to nothing."""
    cluster.ledger.client.xtrim(f"{{allocator:{cluster.ledger.pool}}}:events", maxlen=1, approximate=False)


def test_it_goes_on_where_it_stopped(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(id="a")
    whole = list(watch(cluster.ledger, block_s=0))
    assert [c.fields["event"] for c in whole][-1] == "granted"
    for cut in range(len(whole)):
        some = watch(cluster.ledger, block_s=0)
        first = list(islice(some, cut))
        assert first + list(watch(cluster.ledger, some.position, block_s=0)) == whole


def test_only_new_ones_and_only_some_objects(cluster: LedgerPool) -> None:
    cluster.node()
    following = watch(cluster.ledger, "$", block_s=0, objects=["allocation"])
    assert list(following) == []
    cluster.ledger.cordon("n1")
    cluster.submit(id="a")
    assert [(c.object, c.id) for c in following] == [("allocation", "a")]
    assert following.position == cluster.ledger.position()  # also past what was not asked for


def test_it_waits_for_what_comes(cluster: LedgerPool) -> None:
    cluster.node()
    following = watch(cluster.ledger, "$")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(next(following).id))
    reader.start()
    cluster.submit(id="a")
    reader.join(30)
    assert found == ["a"]


@pytest.mark.parametrize("since", ["", "yesterday", "-1", "1-2-3", "0x3"])
def test_a_position_that_is_none(cluster: LedgerPool, since: str) -> None:
    with pytest.raises(RequestError, match="position"):
        watch(cluster.ledger, since)
    with pytest.raises(RequestError, match="object"):
        watch(cluster.ledger, objects=["planet"])


def test_a_gap_is_told(cluster: LedgerPool) -> None:
    cluster.node()
    following = watch(cluster.ledger, block_s=0)
    next(following)
    list(following)
    for number in range(3):
        cluster.submit(id=f"a{number}")
    short(cluster)
    with pytest.raises(ChangesMissed) as raised:
        list(following)
    assert raised.value.position == following.position
    (oldest,) = watch(cluster.ledger, block_s=0)
    assert raised.value.oldest == oldest.position


def test_a_server_that_has_lost_its_last_writes_is_told_as_a_gap(cluster: LedgerPool) -> None:
    cluster.node()
    following = watch(cluster.ledger, block_s=0)
    list(following)
    cluster.ledger.client.delete(f"{{allocator:{cluster.ledger.pool}}}:events")
    assert list(following) == []
    # Ids begin with the server's milliseconds: a server that was away comes back in a later one.
    last = int(following.position.partition("-")[0])
    wait_until(lambda: _milliseconds(cluster) > last, 30, "the next millisecond")
    cluster.submit(id="a")
    with pytest.raises(ChangesMissed):
        list(following)


def test_the_relay_copies_each_once_and_says_what_is_missing(cluster: LedgerPool) -> None:
    cluster.node()
    with cluster.ledger.client.pubsub(ignore_subscribe_messages=True) as channel:
        name = f"{{allocator:{cluster.ledger.pool}}}:changes"
        channel.subscribe(name)
        relay = Relay()
        while relay.step(cluster.ledger):
            pass
        Relay().step(cluster.ledger)  # another worker's
        copied = [json.loads(row[b"change"]) for _, row in cluster.ledger.client.xrange(name)]
        assert copied == [c.as_dict() for c in watch(cluster.ledger, block_s=0)]
        assert [json.loads(message["data"]) for message in islice(channel.listen(), len(copied))] == copied
    for number in range(3):
        cluster.submit(id=f"a{number}")
    short(cluster)
    relay.step(cluster.ledger)
    missed, last = [json.loads(row[b"change"]) for _, row in cluster.ledger.client.xrange(name)][len(copied) :]
    assert (missed["object"], missed["id"], missed["fields"]["event"]) == ("setting", "changes", "missed")
    assert last["id"] == "a2"


def test_the_stream_of_changes_is_capped(ledger_client: redis.Redis, pool: str) -> None:
    cluster = LedgerPool(ledger_client, pool, Options(events_maxlen=1))
    cluster.node()
    for number in range(300):
        cluster.submit(id=f"a{number}")
        Relay().step(cluster.ledger)
    assert cluster.ledger.client.xlen(f"{{allocator:{cluster.ledger.pool}}}:changes") < 250
