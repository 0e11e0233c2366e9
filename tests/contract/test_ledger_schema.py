"""A ledger that another version wrote is refused, not misread."""

from __future__ import annotations

import pytest
import redis

from celery_allocator.errors import LedgerSchemaError
from celery_allocator.ledger import Ledger, keys
from celery_allocator.ledger.connection import check_schema


def test_a_new_ledger_is_marked_and_accepted_again(ledger_client: redis.Redis, pool: str) -> None:
    ledger = Ledger(ledger_client, pool)
    check_schema(ledger)
    assert ledger_client.hget(keys.key(pool, "meta"), "schema") == str(keys.SCHEMA).encode()
    check_schema(ledger)


def test_another_schema_is_refused_with_both_versions(ledger_client: redis.Redis, pool: str) -> None:
    ledger = Ledger(ledger_client, pool)
    ledger_client.hset(keys.key(pool, "meta"), "schema", str(keys.SCHEMA + 1))
    with pytest.raises(LedgerSchemaError, match=f"schema {keys.SCHEMA + 1}.*speaks {keys.SCHEMA}"):
        check_schema(ledger)
    assert ledger_client.hget(keys.key(pool, "meta"), "schema") == str(keys.SCHEMA + 1).encode()
