"""What callers may do: caps, tenants, whose allocation is whose. At the desk itself, on a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_allocator.allocating import Session
from celery_allocator.allocating.catalogue import TOOLS
from celery_allocator.allocating.schema import parameters
from celery_allocator.surfaces.mcp.caller import SCOPES, Caller
from celery_allocator.surfaces.mcp.caps import Caps
from celery_allocator.surfaces.mcp.desk import LONGEST_WAIT_S, Desk
from tests.support import by_hand
from tests.support.ledger_checks import assert_right
from tests.support.redis_server import RedisServer


def caller(name: str, **changes: Any) -> Caller:
    return Caller(name, f"token:{name}", frozenset(changes.pop("scopes", SCOPES)), **changes)


@pytest.fixture
def session(redis_server: RedisServer, pool: str) -> Iterator[Session]:
    made = by_hand.session(redis_server, pool)
    made.offer_host(10**6)
    yield made
    assert_right(made.ledger)
    made.ledger.client.close()


@pytest.fixture
def desk(session: Session) -> Desk:
    return Desk(lambda: session)


def allocate(desk: Desk, who: Caller, task_type: str = "processing", **arguments: Any) -> dict[str, Any]:
    return desk.serve(who, "resource_allocator", {"task_id": f"{who.name}'s", "task_type": task_type, **arguments})


@pytest.mark.parametrize(
    ("caps", "arguments", "cap"),
    [
        (Caps(gpu_memory_mb=2000), {"resource_requirements": {"gpu_memory_mb": 2001}}, "gpu_memory_mb"),
        (Caps(cpu_cores=1), {}, "cpu_cores"),  # what the task type gives counts
        (Caps(ram_mb=0), {"resource_requirements": {"ram_mb": 1}}, "ram_mb"),
        (Caps(priority=5), {"resource_requirements": {"priority": 6}}, "priority"),
        (Caps(priority=-1), {}, "priority"),
        (Caps(ttl_s=60), {"ttl_s": 60.5}, "ttl_s"),
        (Caps(allocations=0), {}, "allocations"),
    ],
)
def test_nobody_gets_more_than_his_caps(desk: Desk, caps: Caps, arguments: dict[str, Any], cap: str) -> None:
    refused = allocate(desk, caller("ann", caps=caps), **arguments)
    assert refused["error"]["code"] == "cap_exceeded"
    assert refused["error"]["cap"] == cap
    assert refused["error"]["most"] == getattr(caps, cap)
    assert desk.session.ledger.held() == ()


def test_what_is_just_within_the_caps_is_granted(desk: Desk) -> None:
    caps = Caps(gpu_memory_mb=2000, cpu_cores=2, ram_mb=2048, priority=5, ttl_s=60, allocations=1)
    needs = {"gpu_memory_mb": 2000, "cpu_cores": 2, "ram_mb": 2048, "priority": 5}
    ann = caller("ann", caps=caps)
    made = allocate(desk, ann, resource_requirements=needs, ttl_s=60)
    assert made["success"], made
    second = allocate(desk, ann, resource_requirements=needs)
    assert second["error"]["cap"] == "allocations"
    assert desk.serve(ann, "release", {"allocation_id": made["allocation_id"]})["success"]
    assert allocate(desk, ann, resource_requirements=needs)["success"]


def test_the_default_ttl_is_made_to_fit(desk: Desk) -> None:
    made = allocate(desk, caller("ann", caps=Caps(ttl_s=30)))
    found = desk.session.ledger.get(made["allocation_id"])
    assert found.expires_at is not None and found.expires_at - found.submitted_at < 31


def test_nobody_waits_longer_than_a_request_may(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    tool = TOOLS["resource_allocator"]
    monkeypatch.setitem(
        TOOLS,
        "resource_allocator",
        type(tool)(**{**vars(tool), "function": lambda **params: seen.update(params) or {"success": True}}),
    )
    monkeypatch.setattr(type(tool), "checked", lambda self, params: dict(params))
    allocate(desk, caller("ann"), wait_s=10**6)
    assert seen["wait_s"] == LONGEST_WAIT_S


tenants = st.sampled_from(["red", "blue", "", None])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(tenant=st.sampled_from(["red", ""]), asked=tenants | st.just("absent"))
def test_a_token_always_gets_exactly_its_tenant(desk: Desk, tenant: str, asked: str | None) -> None:
    ann = caller("ann", tenant=tenant)
    needs: dict[str, Any] = {"cpu_cores": 1} if asked == "absent" else {"cpu_cores": 1, "tenant": asked}
    made = allocate(desk, ann, resource_requirements=needs)
    if made["success"]:
        assert desk.session.ledger.get(made["allocation_id"]).requirements.tenant == tenant
        assert desk.serve(ann, "release", {"allocation_id": made["allocation_id"]})["success"]
    else:
        assert made["error"]["code"] == "permission_denied"
    assert made["success"] == (asked in ("absent", None, "", tenant))


def test_without_requirements_too(desk: Desk) -> None:
    made = allocate(desk, caller("ann", tenant="red"))
    assert desk.session.ledger.get(made["allocation_id"]).requirements.tenant == "red"


def test_whoever_may_name_any_names_any(desk: Desk) -> None:
    made = allocate(desk, caller("ann", tenant=None), resource_requirements={"tenant": "blue"})
    assert desk.session.ledger.get(made["allocation_id"]).requirements.tenant == "blue"


def test_one_releases_what_is_his_or_his_tenants(desk: Desk) -> None:
    def release(who: Caller, made: dict[str, Any]) -> str:
        reply = desk.serve(who, "release", {"allocation_id": made["allocation_id"]})
        return "released" if reply["success"] else str(reply["error"]["code"])

    ann, bob = caller("ann"), caller("bob")
    red, red_too, blue = (caller(name, tenant=name.split("-")[0]) for name in ("red-1", "red-2", "blue-1"))
    any_ = caller("root", any=True, tenant=None)

    assert release(bob, made := allocate(desk, ann)) == "permission_denied"
    assert release(red, made) == "not_found"  # a tenant's token does not even learn of it
    assert release(ann, made) == "released"
    assert release(blue, made := allocate(desk, red)) == "not_found"
    assert release(bob, made) == "permission_denied"
    assert release(red_too, made) == "released"
    assert release(any_, allocate(desk, red)) == "released"
    assert release(Caller.local(control=True), made := allocate(desk, ann)) == "permission_denied"
    assert release(ann, made) == "released"


def test_an_operators_allocation_is_not_an_agents(desk: Desk, session: Session) -> None:
    made = TOOLS["resource_allocator"].function("t", "processing", session=session)
    refused = desk.serve(caller("ann"), "release", {"allocation_id": made["allocation_id"]})
    assert refused["error"]["code"] == "permission_denied"
    assert session.ledger.get(made["allocation_id"])


def test_a_tenants_token_sees_no_names_of_others(desk: Desk) -> None:
    red, blue, ann = caller("red", tenant="red"), caller("blue", tenant="blue"), caller("ann")
    allocate(desk, red, resource_requirements={"cpu_cores": 8})
    waiting = [allocate(desk, who) for who in (red, blue, ann)]

    rows = desk.serve(red, "queue", {})["waiting"]
    assert [row["position"] for row in rows] == [1, 2, 3]
    # Red holds all there is: the others have their turns first.
    assert [row["task_id"] for row in rows] == [None, None, "red's"]
    assert [row["allocation_id"] is None for row in rows] == [True, True, False]
    assert [row["requirements"].get("tenant") for row in rows] == [None, None, "red"]
    assert [row["requirements"]["cpu_cores"] for row in rows] == [2, 2, 2]
    assert [row["task_id"] for row in desk.serve(ann, "queue", {})["waiting"]] == ["blue's", "ann's", "red's"]

    def looked_up(who: Caller, made: dict[str, Any]) -> bool:
        return bool(desk.serve(who, "status", {"allocation_id": made["allocation_id"]})["success"])

    assert [looked_up(red, made) for made in waiting] == [True, False, False]
    assert [looked_up(ann, made) for made in waiting] == [True, True, True]
    assert [row["task_id"] for row in desk.serve(red, "status", {})["allocations"]] == ["red's", "red's"]


def test_answers_are_as_their_schemas_say(desk: Desk, session: Session) -> None:
    ann = caller("ann", tenant="red")
    made = allocate(desk, ann, "ml_inference", resource_requirements={"cpu_cores": 8})
    waits = allocate(desk, ann)
    answers = [
        ("resource_allocator", made),
        ("resource_allocator", waits),
        ("status", desk.serve(ann, "status", {})),
        ("status", desk.serve(ann, "status", {"allocation_id": made["allocation_id"]})),
        ("status", desk.serve(ann, "status", {"allocation_id": waits["allocation_id"]})),
        ("queue", desk.serve(ann, "queue", {})),
        ("queue", desk.serve(caller("blue", tenant="blue"), "queue", {})),
        ("release", desk.serve(ann, "release", {"allocation_id": made["allocation_id"]})),
    ]
    for tool, answer in answers:
        assert answer["success"]
        jsonschema.Draft202012Validator(TOOLS[tool].answer).validate(answer)
    for tool in TOOLS.values():
        jsonschema.Draft202012Validator.check_schema(dict(tool.answer))
        jsonschema.Draft202012Validator.check_schema(parameters(tool, session.settings))


def test_a_list_has_an_end(desk: Desk) -> None:
    ann = caller("ann")
    allocate(desk, ann, resource_requirements={"cpu_cores": 8})
    for _ in range(3):
        allocate(desk, ann)
    first = desk.serve(ann, "queue", {"limit": 2})
    assert (len(first["waiting"]), first["more"]) == (2, True)
    assert desk.serve(ann, "queue", {"limit": 3})["more"] is False
    assert len(desk.serve(ann, "status", {"limit": 1})["devices"]) == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tool=st.sampled_from(sorted(TOOLS)) | st.text(),
    arguments=st.dictionaries(
        st.sampled_from(["task_id", "resource_requirements", "allocation_id", "limit", "token", "wait_s"]) | st.text(),
        anything,
        max_size=4,
    ),
    scopes=st.lists(st.sampled_from(SCOPES)),
    task_type=st.just("processing") | anything,
)
def test_any_call_is_answered(
    desk: Desk, tool: str, arguments: dict[str, Any], scopes: list[str], task_type: Any
) -> None:
    reply = desk.serve(caller("ann", scopes=scopes, tenant="red"), tool, {**arguments, "task_type": task_type})
    assert reply["success"] or (reply["error"]["code"] and reply["error"]["message"])
