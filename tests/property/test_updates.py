"""Whatever lies in the stream of updates, each entry is answered, and what cannot be read is parked."""

from __future__ import annotations

import json
import uuid
from typing import Any, cast

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_allocator.updates import OBJECTS, OPERATIONS, Intake
from tests.support.ledger_checks import assert_right
from tests.support.ledger_pool import LedgerPool

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_fields = st.dictionaries(
    st.sampled_from(["state", "priority", "paused", "other"]),
    st.sampled_from(["ready", "cordoned", "draining", "on_hold", "waiting", 3, -1000, True, False, None]) | _json,
    max_size=2,
)
_ids = st.sampled_from(["n1", "n1/gpu_0", "w0", "holder", "by-hand", "task of w1", "blue", "granting"])
_formed = st.fixed_dictionaries(
    {
        "object": st.sampled_from(OBJECTS) | _json,
        "id": _ids | st.text(max_size=12) | _json,
        "op": st.sampled_from(OPERATIONS),
        "fields": _fields,
        "actor": st.just("brain") | st.text(max_size=8),
        "idempotency_key": st.sampled_from(["k1", "k2", "k3"]) | st.text(max_size=12),
    }
)
_bodies = st.one_of(
    st.binary(max_size=200),
    _json.map(lambda value: json.dumps(value).encode()),
    _formed.map(lambda value: json.dumps(value).encode()),
)
_entries = st.one_of(
    _bodies.map(lambda body: {b"update": body}),
    st.dictionaries(st.binary(min_size=1, max_size=8), st.binary(max_size=20), min_size=1, max_size=3),
)


@pytest.mark.timeout(300)
def test_every_entry_is_answered(ledger_client: redis.Redis) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(_entries, min_size=1, max_size=12))
    def holds(entries: list[dict[bytes, bytes]]) -> None:
        cluster = LedgerPool(ledger_client, f"test-{uuid.uuid4().hex[:12]}")
        cluster.node()
        cluster.running(10_000, 1, id="holder")
        cluster.by_hand(0, 1, id="by-hand")
        for number in range(2):
            cluster.submit(10_000, id=f"w{number}")
        stream = f"{{allocator:{cluster.ledger.pool}}}:updates"
        sent = [ledger_client.xadd(stream, cast("Any", fields)).decode() for fields in entries]
        intake = Intake(lambda _: None)
        while intake.step(cluster.ledger):
            pass
        replies = [reply for _, reply in cluster.ledger.replies()]
        assert [reply["update"] for reply in replies] == sent
        assert all(reply["code"] != "internal_error" for reply in replies), replies
        malformed = [reply["update"] for reply in replies if reply["status"] == "malformed"]
        assert [parked["from"] for _, parked in cluster.ledger.parked_updates()] == malformed
        # What was told to have been done, and only that, stands in the journal.
        told = [entry for r in replies if r["status"] in ("applied", "partial") for entry in r["entries"]]
        assert sorted(told) == sorted(entry.number for entry in cluster.ledger.journal(1000))
        assert all(entry.source == "updates" for entry in cluster.ledger.journal(1000))
        assert ledger_client.xlen(stream) == 0
        assert_right(cluster.ledger)

    holds()
