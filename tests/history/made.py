"""Entries for the fold and the recorder, and what is read back from a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import redis
from sqlalchemy import select

from celery_allocator.history import History
from celery_allocator.history.entry import Entry, parse
from celery_allocator.history.fold import Changes
from celery_allocator.history.models import AllocationRow, DeviceStateRow, Event, NodeStateRow, OperatorAction
from celery_allocator.history.records import COLUMNS
from celery_allocator.ledger import keys

#: Milliseconds since the epoch of the first event made here.
BEGAN = 1_700_000_000_000


def entry(number: int, event: str, object_id: str = "a1", *, at: int | None = None, **fields: Any) -> Entry:
    """The ``number``-th entry, ``at`` ms after the beginning (``number`` seconds, unless said otherwise)."""
    ms = BEGAN + (number * 1000 if at is None else at)
    told = {"event": event, "at": ms, "id": object_id, "task": f"task of {object_id}", **fields}
    return parse(f"{ms}-{number}", {name: str(value) for name, value in told.items()})


def in_stream(client: redis.Redis, pool: str) -> list[Entry]:
    """The whole stream, read by XRANGE."""
    return [
        parse(
            event_id.decode(), {name.decode(errors="replace"): v.decode(errors="replace") for name, v in fields.items()}
        )
        for event_id, fields in client.xrange(keys.key(pool, "events"))
    ]


def submitted(number: int, event: str = "waiting", object_id: str = "a1", **fields: Any) -> Entry:
    """The first entry of an allocation."""
    asked = {"new": 1, "shape": "6144:2:4096:t", "priority": 3, "strategy": "best_fit", "tenant": "team", "expires": ""}
    return entry(number, event, object_id, **{"name": "proj.infer", **asked, **fields})


def grant(number: int, object_id: str = "a1", device: str = "n1/gpu_0", **fields: Any) -> Entry:
    """Granted, under the number as token."""
    told = {"name": "proj.infer", "device": device, "token": number, "cores": "0,1", **fields}
    return entry(number, "granted", object_id, **told)


def start(number: int, object_id: str = "a1", **fields: Any) -> Entry:
    """Started by its worker."""
    return entry(number, "started", object_id, device="n1/gpu_0", token=1, worker="w1", **fields)


def release(number: int, object_id: str = "a1", outcome: str = "success", **fields: Any) -> Entry:
    """Released with an outcome."""
    return entry(number, "released", object_id, device="n1/gpu_0", token=1, outcome=outcome, held_ms=0, **fields)


def folded(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """The rows of allocations that a fold over all of it gives, by id."""
    return {name: asdict(record) for name, record in Changes().fold(entries).allocations.items()}


def stored(history: History) -> dict[str, dict[str, Any]]:
    """The same, from a database."""
    with history.session() as session:
        rows = session.scalars(select(AllocationRow).where(AllocationRow.pool == history.pool)).all()
    return {row.allocation_id: {name: getattr(row, name) for name in COLUMNS} for row in rows}


def recorded(history: History) -> list[Entry]:
    """The events in a database, in the order of the stream."""
    with history.session() as session:
        rows = session.scalars(select(Event).where(Event.pool == history.pool).order_by(Event.ordinal)).all()
    return [Entry(row.event_id, row.event, row.at, row.object_id, row.task_id, row.fields) for row in rows]


def others(history: History) -> dict[str, list[tuple[Any, ...]]]:
    """What stands in the tables of nodes, devices and actions, sorted."""
    found = {}
    with history.session() as session:
        for model in (NodeStateRow, DeviceStateRow, OperatorAction):
            columns = model.__table__.c
            rows = session.execute(select(*columns).where(columns.pool == history.pool)).all()
            found[model.__tablename__] = sorted((tuple(row) for row in rows), key=repr)
    return found
