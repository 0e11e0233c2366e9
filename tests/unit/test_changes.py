"""Events in the form of updates: none is forgotten, and each says what is new."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from celery_allocator.updates import OBJECTS, OPERATIONS, Change, change
from celery_allocator.updates.changes import LEFT_OUT, RULES, SOURCES
from tests.docs.test_rendered import render

__all__ = ["render"]  # a fixture


def told(event: str, /, **fields: str) -> Change:
    found = change("5-0", {"event": event, "at": "1500", "id": "a1", "task": "t1", **fields})
    assert found is not None
    return found


def test_every_event_is_told_or_left_out_for_a_reason(render: ModuleType) -> None:
    events = set(render.EVENTS)
    assert set(RULES) | set(LEFT_OUT) == events
    assert not set(RULES) & set(LEFT_OUT)
    assert all(LEFT_OUT.values())


def test_every_field_of_an_event_is_told_or_known(render: ModuleType) -> None:
    """A field that is added to an event has to be told, or be listed here."""
    missing = []
    #: Numbers that say nothing without the fields beside them, and what an object's own name or state says.
    kept_back = {
        "token", "new", "device", "from", "task", "held_ms", "peak_gpu_mb", "peak_ram_mb", "incarnation", "devices",
        "gpu_memory_mb", "error", "by", "again", "name", "to", "cores",
    }  # fmt: skip
    for line in render.events().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 4 or cells[1].strip("`") not in RULES or cells[1] == "`operated`":
            continue
        takes = {"id", *(SOURCES.get(name, name) for name in RULES[cells[1].strip("`")].takes)}
        fields = {field.strip(" `") for field in cells[2].split(",")} - {"–"}
        missing += [(cells[1], field) for field in fields - takes - kept_back]
    assert missing == []


@pytest.mark.parametrize("event", sorted(RULES))
def test_the_form_is_that_of_an_update(event: str) -> None:
    found = told(event, device="n1/gpu_0", to="waiting", cores="0")
    said = found.as_dict()
    assert list(said) == ["object", "id", "op", "fields", "actor", "idempotency_key"]
    assert said["object"] in OBJECTS and said["op"] in OPERATIONS
    assert (found.position, said["fields"]["event"], said["fields"]["at"]) == ("5-0", event, 1.5)


@pytest.mark.parametrize(
    ("event", "fields", "object_", "op", "says"),
    [
        ("overuse", {"resource": "ram_mb", "promised_mb": "64", "used_mb": "99", "action": "kill"}, "allocation",
         "update", {"resource": "ram_mb", "promised_mb": 64, "used_mb": 99, "action": "kill"}),
        ("granted", {"shape": "2048:2:64:t", "cores": "0,3", "token": "7", "device": "n1/cpu"}, "allocation", "update",
         {"state": "granted", "core_ids": [0, 3], "token": 7, "device": "n1/cpu", "gpu_memory_mb": 2048}),
        ("granted", {"device": "n1/gpu_0", "warm": "hit"}, "allocation", "update", {"state": "granted", "warm": "hit"}),
        ("granted", {"shape": "0:1:0:m", "cores": "1"}, "allocation", "update", {"state": "running", "kind": "manual"}),
        ("delayed", {"eta": "2500", "expires": "", "priority": "-3"}, "allocation", "update",
         {"state": "delayed", "eta_at": 2.5, "expires_at": None, "priority": -3}),
        ("lost", {"again": "1"}, "allocation", "update", {"state": "waiting", "device": None}),
        ("lost", {"again": "0"}, "allocation", "delete", {"outcome": "lost"}),
        ("released", {"outcome": "success", "held_ms": "250"}, "allocation", "delete",
         {"outcome": "success", "held_s": 0.25}),
        ("cordoned", {"id": "n1"}, "node", "update", {"state": "cordoned"}),
        ("cordoned", {"id": "n1/gpu_0"}, "device", "update", {"state": "cordoned"}),
        ("node", {"id": "n1", "states": "gpu_0:ready:1 cpu:cordoned:0", "cores": "8"}, "node", "update",
         {"cpu_cores": 8, "devices": {"gpu_0": {"state": "ready", "online": True},
                                      "cpu": {"state": "cordoned", "online": False}}}),
        ("worker", {"id": "w@h", "device": "n1/cpu", "slots": "2"}, "device", "update", {"worker": "w@h", "slots": 2}),
        ("paused", {"by": "operator", "until": ""}, "setting", "update", {"paused": True, "until": None}),
        ("resumed", {}, "setting", "update", {"recovering": False}),
        ("breaker", {"id": "work", "state": "open"}, "setting", "update", {"state": "open"}),
        ("waiting", {"position": "3", "estimate": "2500", "estimate_p90": "4000"}, "allocation", "update",
         {"queue_position": 3, "estimated_start_at": 2.5, "estimated_start_p90_at": 4.0}),
        ("waiting", {"position": "1", "estimate": "", "estimate_p90": ""}, "allocation", "update",
         {"estimated_start_at": None, "estimated_start_p90_at": None}),
        ("reserved", {"device": "n1/gpu_0", "until": "2500"}, "allocation", "update",
         {"reserved_device": "n1/gpu_0", "reserved_until": 2.5, "device": None}),
        ("reserved", {"device": "n1/gpu_0", "until": ""}, "allocation", "update", {"reserved_until": None}),
        ("moved", {"from": "4", "position": "1"}, "allocation", "update", {"queue_position": 1}),
        ("tenant", {"id": "vision", "quota": '{"weight": 2, "by": "operator"}'}, "tenant", "update",
         {"quota": {"weight": 2, "by": "operator"}}),
        ("tenant", {"id": "", "quota": ""}, "tenant", "update", {"quota": None}),
        ("withheld", {"id": "n1/gpu_0", "withheld_mb": "300", "foreign_mb": "200", "pids_hidden": "1"}, "device",
         "update", {"withheld_mb": 300, "foreign_mb": 200, "pids_hidden": True}),
        ("withheld", {"id": "n1", "withheld_mb": "300", "overuse_mb": "0"}, "node", "update",
         {"withheld_mb": 300, "overuse_mb": 0}),
    ],
)  # fmt: skip
def test_what_is_new(event: str, fields: dict[str, str], object_: str, op: str, says: dict[str, Any]) -> None:
    found = told(event, **fields)
    assert (found.object, found.op, found.actor) == (object_, op, "allocator")
    assert {key: found.fields.get(key) for key in says} == says


@pytest.mark.parametrize(
    ("target", "object_", "name"),
    [
        ("node:n1", "node", "n1"),
        ("device:n1/gpu_0", "device", "n1/gpu_0"),
        ("allocation:a:b", "allocation", "a:b"),
        ("pool", "setting", "granting"),
        ("breaker:work", "setting", "breaker:work"),
    ],
)
def test_an_operators_action_names_who(target: str, object_: str, name: str) -> None:
    what = {"action": "cordon", "state": "undone", "reason": "", "source": "cli"}
    found = told("operated", id=target, actor="ada", entry="3", **what)
    assert (found.object, found.id, found.actor) == (object_, name, "ada")
    assert found.fields["operated"] == {**what, "entry": 3}


def test_what_somebody_else_wrote_breaks_nothing() -> None:
    assert change("5-0", {}) is None
    assert change("5-0", {"event": "made up"}) is None
    assert change("5-0", {"event": "left", "id": "w", "device": ""}) is None
    assert told("granted", shape="no shape", cores="x", token="?").fields["shape"] == "no shape"
    assert told("operated", id="", entry="x").id == "granting"
    assert told("tenant", id="vision", quota="[1]").fields["quota"] == "[1]"
