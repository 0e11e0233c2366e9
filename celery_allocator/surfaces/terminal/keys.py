"""The keys that act: on which rows, with which command, after which question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_allocator.model import FIELDS, TenantState
from celery_allocator.operations import Cancel, Command, Cordon, Drain, Front, Hold, Priority, Uncordon, Unhold
from celery_allocator.surfaces.terminal.places import Place
from celery_allocator.surfaces.terminal.tenancy import NOBODY

DEVICES, TASKS, WAITING = ("devices",), ("running", "queue"), ("queue",)


@dataclass(frozen=True)
class Act:
    """``tables``: whose rows it is for. ``warning``: what it does, for who has to say yes. ``number``: it takes one."""

    key: str
    word: str
    tables: tuple[str, ...]
    make: Callable[[str, int], Command]
    warning: str
    number: bool = False


_BOUNDS = FIELDS["priority"]

ACTS: tuple[Act, ...] = (
    Act("c", "cordon", DEVICES, lambda name, _: Cordon(name), "Nothing new is granted there. What it holds goes on."),
    Act(
        "d",
        "drain",
        DEVICES,
        lambda name, _: Drain(name),
        "Nothing new is granted there, and what has not started is taken back into line. What runs ends by itself.",
    ),
    Act("u", "uncordon", DEVICES, lambda name, _: Uncordon(name), "Work is granted there again."),
    Act(
        "x",
        "cancel",
        TASKS,
        lambda name, _: Cancel(name),
        "It ends before it starts, and its caller is told REVOKED. A task that runs already is refused.",
    ),
    Act("h", "hold", WAITING, lambda name, _: Hold(name), "It keeps its place in line, and is not granted."),
    Act("u", "unhold", WAITING, lambda name, _: Unhold(name), "It goes on."),
    Act(
        "p",
        "priority",
        WAITING,
        Priority,
        f"Larger starts first: {_BOUNDS.minimum} to {_BOUNDS.maximum}.",
        number=True,
    ),
    Act("f", "front", WAITING, lambda name, _: Front(name), "It goes before the first in line."),
)


def acts_on(table: str) -> tuple[Act, ...]:
    """What can be done to rows of that table."""
    return tuple(act for act in ACTS if table in act.tables)


def subject(row: Any) -> tuple[str, str]:
    """The name by which a command knows a row, and what people call it."""
    if isinstance(row, Place):
        return row.key, f"{row.key}"
    if isinstance(row, TenantState):
        return row.name, f"tenant {row.name or NOBODY}"
    allocation = row.allocation
    return allocation.allocation_id, f"{allocation.task_name}, task {allocation.task_id}, {allocation.allocation_id}"


def priority_of(row: Any) -> int | None:
    """What the priority of a row is now."""
    return None if isinstance(row, Place) else int(row.allocation.priority)


#: Keys that change nothing, and what they do.
LOOKING: tuple[tuple[str, str], ...] = (
    ("Tab, Shift-Tab", "next table, table before"),
    ("Arrows, PgUp, PgDn", "select a row"),
    ("Enter", "everything about the row"),
    ("/", "only what has a text in its name or id; Esc: all again"),
    ("s, r", "sort by the next column; the other way round"),
    ("v", "what waits, what is on hold, what is delayed"),
    ("t", "tenants: turns, caps, what each holds; again: not"),
    ("n, b", "next page of it, page before"),
    ("z", "this table alone; all again"),
    ("Space", "stop looking; go on"),
    ("q, Ctrl-C", "leave"),
)
