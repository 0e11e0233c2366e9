"""The agent's tool, and malformed input everywhere. No ledger is reached: touching one fails the test."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.allocating import Session
from celery_allocator.model import FIELDS, LABELS, OTHERS, TASK_TYPES, Strategy
from celery_allocator.resource_allocator import (
    PERMISSION,
    allocate_resources,
    allocation,
    execute,
    release_resources,
    renew_resources,
    tool_schema,
)
from celery_allocator.settings import STRATEGIES, Settings
from tests.support import by_hand


def untouchable() -> Session:
    """A session whose ledger must not be used."""

    def connect() -> NoReturn:
        pytest.fail("the ledger was used")

    return Session(Settings(devices="none"), connect_to=connect)


GOOD: dict[str, Any] = {
    "task_id": "t",
    "task_type": "processing",
    "resource_requirements": {"cpu_cores": 1},
    "allocation_strategy": "best_fit",
    "wait_s": 0,
    "ttl_s": None,
}
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _bad_seconds(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return math.isnan(value) or not 0.001 <= value <= 1e9


_BAD: dict[str, st.SearchStrategy[Any]] = {
    "task_id": _anything.filter(lambda v: not isinstance(v, str) or not v.isprintable() or not v.strip())
    | st.text("x", min_size=256, max_size=300),
    "task_type": _anything.filter(lambda v: not isinstance(v, str) or v not in TASK_TYPES),
    "resource_requirements": _anything.filter(lambda v: not isinstance(v, dict) and v is not None)
    | st.dictionaries(st.text().filter(lambda key: key not in FIELDS), _anything, min_size=1, max_size=2)
    | st.sampled_from(sorted(FIELDS)).flatmap(
        lambda key: st.fixed_dictionaries(
            {
                key: _anything.filter(lambda v: v is not None and (isinstance(v, bool) or not isinstance(v, int)))
                | st.integers(min_value=FIELDS[key].maximum + 1)
                | st.integers(max_value=FIELDS[key].minimum - 1)
                | st.just(10**5000)
            }
        )
    )
    | st.just({"cpu_cores": 0, "gpu_memory_mb": 0, "ram_mb": 0}),
    "allocation_strategy": _anything.filter(lambda v: v not in [s.value for s in Strategy]),
    "wait_s": _anything.filter(lambda v: v != 0 and _bad_seconds(v) and not (isinstance(v, float) and 0 < v < 1)),
    "ttl_s": _anything.filter(lambda v: v is not None and _bad_seconds(v)),
}


@given(st.sampled_from(sorted(_BAD)).flatmap(lambda key: st.tuples(st.just(key), _BAD[key])))
def test_malformed_arguments_are_refused_before_anything_happens(bad: tuple[str, Any]) -> None:
    key, value = bad
    params = {**GOOD, key: value}

    for reply in (
        allocate_resources(**params, session=untouchable()),
        execute({"tool": "resource_allocator", "params": params}, {PERMISSION}, session=untouchable()),
    ):
        assert list(reply)[: len(by_hand.KEYS)] == by_hand.KEYS
        assert reply["success"] is False
        assert reply["error"]["code"] == "bad_requirements"
        assert reply["error"]["rule"] in reply["error"]["message"]
        assert json.loads(json.dumps(reply)) == reply


@given(
    st.sampled_from([allocation, renew_resources, release_resources]),
    _anything.filter(lambda v: not isinstance(v, str) or not v.isprintable() or not v.strip()),
)
def test_malformed_ids_are_refused_before_anything_happens(act: Any, value: Any) -> None:
    reply = act(value, session=untouchable())

    assert reply["success"] is False
    assert reply["error"]["code"] == "bad_requirements"


@given(
    st.sampled_from([renew_resources, release_resources]),
    _anything.filter(lambda v: v is not None and (isinstance(v, bool) or not isinstance(v, int) or v < 0)),
)
def test_malformed_tokens_are_refused_before_anything_happens(act: Any, value: Any) -> None:
    reply = act("alloc_1", token=value, session=untouchable())

    assert reply["success"] is False
    assert reply["error"]["code"] == "bad_requirements"


@given(_anything | st.fixed_dictionaries({"tool": _anything | st.just("resource_allocator"), "params": _anything}))
def test_any_request_without_the_permission_is_refused(request_: Any) -> None:
    reply = execute(request_, session=untouchable())

    assert reply["success"] is False
    assert reply["error"]["code"] == "permission_denied"


@given(
    _anything
    | st.fixed_dictionaries({"tool": _anything, "params": st.just(GOOD)})
    | st.fixed_dictionaries({"tool": st.just("resource_allocator"), "params": _anything})
    | st.fixed_dictionaries(
        {"tool": st.just("resource_allocator"), "params": st.just(GOOD), "more": _anything},
    )
)
def test_a_malformed_request_is_refused(request_: Any) -> None:
    reply = execute(request_, {PERMISSION}, session=untouchable())

    assert reply["success"] is False
    assert reply["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"tool": "rm", "params": GOOD}, ["'rm'", "resource_allocator"]),
        ({"tool": "resource_allocator", "params": {**GOOD, "gpus": 1}}, ["gpus", "task_id, task_type"]),
        ({"tool": "resource_allocator", "params": {"task_id": "t"}}, ["'task_type' is missing"]),
        ({"tool": "resource_allocator", "params": {**GOOD, "session": 1}}, ["session"]),
        ({"tool": "resource_allocator"}, ["params"]),
        ("resource_allocator", ["str"]),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(request_: Any, words: list[str]) -> None:
    message = execute(request_, {PERMISSION}, session=untouchable())["error"]["message"]

    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "permissions",
    [
        (),
        [],
        None,
        set(),
        {"runtime:read"},
        ["runtime"],
        PERMISSION,
        "a runtime:control b",
        {PERMISSION: True},
        7,
        b"x",
    ],
)
def test_only_a_collection_with_the_permission_permits(permissions: Any) -> None:
    request_ = {"tool": "resource_allocator", "params": GOOD}

    reply = execute(request_, permissions, session=untouchable())

    assert reply["error"]["code"] == "permission_denied"
    assert PERMISSION in reply["error"]["message"]
    assert list(reply)[: len(by_hand.KEYS)] == by_hand.KEYS


def test_the_schema_is_the_functions_signature_and_the_requirements_table() -> None:
    schema = tool_schema(Session(Settings(task_types={"embedding": {"cpu_cores": 3}}, strategies={"mine": "mine.lua"})))

    assert schema["name"] == "resource_allocator"
    assert schema["permission"] == PERMISSION
    parameters = schema["parameters"]
    known = [p for p in inspect.signature(allocate_resources).parameters.values() if p.name != "session"]
    assert list(parameters["properties"]) == [p.name for p in known]
    assert parameters["required"] == ["task_id", "task_type"]
    assert parameters["additionalProperties"] is False
    assert {name: spec["type"] for name, spec in parameters["properties"].items()} == {
        "task_id": "string",
        "task_type": "string",
        "resource_requirements": ["object", "null"],
        "allocation_strategy": "string",
        "wait_s": "number",
        "ttl_s": ["number", "null"],
    }
    assert parameters["properties"]["task_type"]["enum"] == [*TASK_TYPES, "embedding"]
    assert parameters["properties"]["allocation_strategy"]["enum"] == [*STRATEGIES, "mine"]
    assert parameters["properties"]["allocation_strategy"]["default"] == "best_fit"
    needs = parameters["properties"]["resource_requirements"]
    assert list(needs["properties"]) == [*FIELDS, *LABELS, *OTHERS]
    for name, field in FIELDS.items():
        assert (needs["properties"][name]["minimum"], needs["properties"][name]["maximum"]) == (
            field.minimum,
            field.maximum,
        )
    assert json.loads(json.dumps(schema)) == schema
