"""The agent tool: any request is answered, in JSON, and one that is refused has changed nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_allocator.allocating import Session
from celery_allocator.allocating.function import allocation, release_resources, renew_resources
from celery_allocator.allocating.tool import PERMISSION, TOOL, execute
from tests.fuzz.material import FUZZ, documents, leaves, needs, objects, state, text
from tests.support import by_hand
from tests.support.ledger_checks import assert_right
from tests.support.redis_server import RedisServer

#: Requests that are nearly right: known names, values of any type.
params = st.fixed_dictionaries(
    {},
    optional={
        "task_id": st.just("t") | leaves,
        "task_type": st.just("processing") | documents,
        "resource_requirements": needs | documents,
        "allocation_strategy": st.just("best_fit") | documents,
        "wait_s": st.just(0) | text,
        "ttl_s": st.just(60) | leaves,
        "session": documents,
    },
)
requests = documents | st.fixed_dictionaries({"tool": st.just(TOOL) | documents, "params": params | documents})


@pytest.fixture
def session(redis_server: RedisServer, pool: str) -> Iterator[Session]:
    """A host that stays, so that a call does not have to register it."""
    made = by_hand.session(redis_server, pool)
    made.offer_host(10**6)
    yield made
    assert_right(made.ledger)
    made.ledger.client.close()


def answered(session: Session, reply: dict[str, Any], before: dict[bytes, Any]) -> None:
    """The reply is JSON of the one form. Refused: the ledger is as before. Granted: it is given back here."""
    assert json.loads(json.dumps(reply, allow_nan=False)).keys() >= {"success", "metadata"}
    if reply["success"]:
        assert release_resources(reply["allocation_id"], session=session)["success"]
    else:
        assert reply["error"]["code"] and reply["error"]["message"]
        assert state(session.ledger) == before


@FUZZ
@given(requests)
@example({"tool": TOOL, "params": {"task_id": "t", "task_type": "processing", "ttl_s": 10**400}})
@example({"tool": TOOL, "params": {"task_id": "t", "task_type": ["processing"]}})
def test_any_request_is_answered(session: Session, request: Any) -> None:
    before = state(session.ledger)
    answered(session, execute(request, [PERMISSION], session=session), before)


@FUZZ
@given(requests, objects.filter(lambda value: value != [PERMISSION]))
def test_without_the_permission_nothing_happens(session: Session, request: Any, permissions: Any) -> None:
    before = state(session.ledger)
    reply = execute(request, permissions, session=session)
    assert not reply["success"]
    answered(session, reply, before)


@FUZZ
@given(objects, objects, objects)
def test_the_other_functions_answer_too(session: Session, name: Any, number: Any, seconds: Any) -> None:
    """Looking up, renewing and releasing what is not there."""
    before = state(session.ledger)
    answered(session, allocation(name, session=session), before)
    answered(session, renew_resources(name, seconds, number, session=session), before)
    answered(session, release_resources(name, number, session=session), before)
