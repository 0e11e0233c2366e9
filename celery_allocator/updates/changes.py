"""Every change of the ledger in the form of an update: the event stream, translated by one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from celery_allocator.model import Shape

#: Who did what no operator did.
ALLOCATOR = "allocator"


@dataclass(frozen=True)
class Change:
    """What has changed of one object: ``fields`` holds what is new of it, also ``event`` and ``at`` (seconds).

    ``idempotency_key`` is the id of the event's entry, the ``position`` to go on from.
    """

    object: str
    id: str
    op: str
    fields: Mapping[str, Any]
    actor: str
    idempotency_key: str

    @property
    def position(self) -> str:
        """Where this change stands among all."""
        return self.idempotency_key

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data: the form of an update."""
        return {**asdict(self), "fields": dict(self.fields)}


@dataclass(frozen=True)
class Rule:
    """How one kind of event is told. ``object``: what has changed; ``named``: its id, from the event's fields.

    ``says``: fields that are always so; ``takes``: fields of the event that are told under the same name, or as
    :data:`_READ` says.
    """

    object: str
    says: Mapping[str, Any] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    op: str = "update"
    named: Callable[[Mapping[str, str]], str] = lambda event: event.get("id", "")


def _seconds(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: int(text) / 1000 if text else None}


def _whole(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: int(text) if text else None}


def _shape(text: str) -> dict[str, Any]:
    shape = Shape.parse(text)
    if shape is None:
        raise ValueError(f"{text!r} is no shape")
    return {**asdict(shape), "kind": shape.kind.value}


def _devices(text: str) -> dict[str, Any]:
    """``gpu_0:ready:1 cpu:ready:1``: an id may hold colons itself, so from the right."""
    rows = (word.rsplit(":", 2) for word in text.split())
    return {"devices": {name: {"state": state, "online": live == "1"} for name, state, live in rows}}


def _held_cores(text: str) -> dict[str, Any]:
    return {"core_ids": [int(core) for core in text.split(",") if core]}


def _quota(text: str) -> dict[str, Any]:
    quota = json.loads(text) if text else None
    if not isinstance(quota, (dict, type(None))):
        raise ValueError(f"{text!r} is no quota")  # noqa: TRY004 (what is told is damaged, whatever it is)
    return {"quota": quota}


#: Fields of events that are told otherwise than as the text that they are.
_READ: dict[str, Callable[[str], dict[str, Any]]] = {
    "at": _seconds("at"),
    "shape": _shape,
    "priority": _whole("priority"),
    "position": _whole("queue_position"),
    "token": _whole("token"),
    "oom_retries": _whole("oom_retries"),
    "slots": _whole("slots"),
    "ram_mb": _whole("ram_mb"),
    "promised_mb": _whole("promised_mb"),
    "used_mb": _whole("used_mb"),
    "cores": _whole("cpu_cores"),
    "core_ids": _held_cores,
    "states": _devices,
    "eta": _seconds("eta_at"),
    "expires": _seconds("expires_at"),
    "estimate": _seconds("estimated_start_at"),
    "estimate_p90": _seconds("estimated_start_p90_at"),
    "reserved_until": _seconds("reserved_until"),
    "quota": _quota,
    "held_ms": _seconds("held_s"),
    "ttl_ms": _seconds("ttl_s"),
    "away_ms": _seconds("away_s"),
    "until": _seconds("until"),
    "to": lambda text: {"state": text},
    "left": _whole("not_mended"),
    "withheld_mb": _whole("withheld_mb"),
    "foreign_mb": _whole("foreign_mb"),
    "leftover_mb": _whole("leftover_mb"),
    "overuse_mb": _whole("overuse_mb"),
    "pids_hidden": lambda text: {"pids_hidden": text == "1"},
}

#: Fields that are told apart from others of the same name: the ids of what is held (elsewhere: the number of what a
#: node has), and what is kept for one that waits (elsewhere: what it holds).
SOURCES = {"core_ids": "cores", "reserved_device": "device", "reserved_until": "until"}

_FIRST = ("shape", "priority", "strategy", "tenant", "expires")
_ON = ("device", "token")
_NONE = {"device": None, "token": None, "worker": None}


def _of_device(event: Mapping[str, str]) -> str:
    return event.get("device", "")


def _named(text: str) -> Callable[[Mapping[str, str]], str]:
    return lambda _: text


def _breaker(event: Mapping[str, str]) -> str:
    return f"breaker:{event.get('id', '')}"


def _live(state: str, *takes: str, **says: Any) -> Rule:
    return Rule("allocation", {"state": state, **says}, ("name", *takes))


def _ended(outcome: str | None, *takes: str) -> Rule:
    says = {"state": "released", **({} if outcome is None else {"outcome": outcome})}
    return Rule("allocation", says, ("name", *takes), op="delete")


#: Events that change nothing that a mirror would hold, each with the reason.
LEFT_OUT = {
    "republished": "the same grant once more",
    "settled": "its end was told when it ended",
    "discarded": "its end was told when it was parked",
    "audit": "tells of the ledger's health; somebody has to look at it",
}

#: What each kind of event says. ``operated`` and ``lost`` depend on more: see :func:`change`.
RULES: dict[str, Rule] = {
    "delayed": _live("delayed", "eta", *_FIRST),
    "waiting": _live("waiting", "position", "estimate", "estimate_p90", *_FIRST),
    "granted": _live("granted", *_ON, "core_ids", "warm", *_FIRST),
    "started": _live("running", *_ON, "worker"),
    "reclaimed": _live("running", *_ON),
    "requeued": _live("waiting", *_FIRST, **_NONE),
    "withdrawn": _live("waiting", **_NONE),
    "grown": _live("waiting", "shape", "oom_retries", **_NONE),
    "held": _live("on_hold", "by", *_FIRST),
    "unheld": Rule("allocation", {"by": None}, ("name", "to")),
    "priority": Rule("allocation", {}, ("name", "priority")),
    "moved": Rule("allocation", {}, ("name", "position")),
    "reserved": Rule("allocation", {}, ("reserved_device", "reserved_until")),
    "restored": Rule("allocation", {}, ("name", "to", *_FIRST)),
    "renewed": Rule("allocation", {}, ("ttl_ms",)),
    "overuse": Rule("allocation", {}, ("name", "resource", "promised_mb", "used_mb", "action")),
    "released": _ended(None, "outcome", "held_ms", *_ON),
    "cancelled": _ended(None, "outcome"),
    "expired": _ended("expired"),
    "parked": _ended("parked", "reason"),
    "lost": _ended("lost", *_ON),
    "node": Rule("node", {"online": True}, ("cores", "ram_mb", "state", "states")),
    "node_lost": Rule("node", {"online": False, "withheld_mb": 0}),
    "worker": Rule("device", {"online": True, "closing": False}, ("worker", "slots", "state"), named=_of_device),
    "closing": Rule("device", {"closing": True}, ("worker",), named=_of_device),
    "left": Rule("device", {"worker": None, "slots": 0, "withheld_mb": 0}, named=_of_device),
    "worker_lost": Rule("device", {"worker": None, "slots": 0, "withheld_mb": 0}, named=_of_device),
    "withheld": Rule("place", {}, ("withheld_mb", "foreign_mb", "leftover_mb", "overuse_mb", "pids_hidden")),
    "cordoned": Rule("place", {"state": "cordoned"}, ("reason",)),
    "draining": Rule("place", {"state": "draining"}, ("reason",)),
    "uncordoned": Rule("place", {"state": "ready"}, ("reason",)),
    "paused": Rule("setting", {}, ("until",), named=_named("granting")),
    "resumed": Rule("setting", {}, named=_named("granting")),
    "epoch": Rule("setting", {}, ("run", "away_ms"), named=_named("server")),
    "repaired": Rule("setting", {"repaired": True}, ("left",), named=_named("ledger")),
    "breaker": Rule("setting", {}, ("state",), named=_breaker),
    "tenant": Rule("tenant", {}, ("quota",)),
    "operated": Rule("operated"),
}


def change(position: str, event: Mapping[str, str]) -> Change | None:
    """One entry of the event stream as a change; ``None`` for what is left out."""
    what = event.get("event", "")
    rule = RULES.get(what)
    if rule is None:
        return None
    if what == "operated":
        return _operated(position, event)
    if what == "lost" and event.get("again") == "1":
        rule = _live("waiting", **_NONE)
    named = rule.named(event)
    if not named and what != "tenant":  # a worker that had no device; a tenant without a name is all that name none
        return None
    fields: dict[str, Any] = {"event": what, **_at(event)}
    if event.get("task"):
        fields["task_id"] = event["task"]
    fields.update(_told(what, rule, event))
    kind = rule.object
    if kind == "place":
        kind = "device" if "/" in named else "node"
    return Change(kind, named, rule.op, fields, ALLOCATOR, position)


def _told(what: str, rule: Rule, event: Mapping[str, str]) -> dict[str, Any]:
    told = dict(rule.says)
    for name in rule.takes:
        source = SOURCES.get(name, name)
        if name == "worker" and rule.object == "device":  # such an event is the worker's own
            source = "id"
        if source in event:
            told.update(_read(name, event[source]))
    if what == "granted" and told.get("kind") == "manual":  # nobody starts it: it runs at once
        told["state"] = "running"
    if what in ("paused", "resumed"):
        # Stopped by an operator, or by the ledger until all workers have reported: each ends by itself.
        told["paused" if event.get("by") else "recovering"] = what == "paused"
    return told


def _read(name: str, text: str) -> dict[str, Any]:
    try:
        return _READ[name](text) if name in _READ else {name: text}
    except (ValueError, LookupError):  # somebody else wrote to the stream
        return {name: text}


def _operated(position: str, event: Mapping[str, str]) -> Change:
    """An operator's action, beside the changes that it brought about, which are told on their own."""
    kind, _, named = event.get("id", "").partition(":")
    if kind == "pool" or not named:
        kind, named = "setting", "granting"
    if kind == "breaker":
        kind, named = "setting", f"breaker:{named}"
    told = {key: event[key] for key in ("action", "reason", "source", "state") if key in event}
    told = {**told, **_whole("entry")(event["entry"])} if event.get("entry", "").isdigit() else told
    fields = {"event": "operated", **_at(event), "operated": told}
    return Change(kind, named, "update", fields, event.get("actor") or ALLOCATOR, position)


def _at(event: Mapping[str, str]) -> dict[str, Any]:
    return _read("at", event["at"]) if "at" in event else {}
