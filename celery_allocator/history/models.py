"""The history's tables.

All times are aware UTC in columns ending in ``_at``; lengths of time are seconds in ``_s``, sizes MB in ``_mb``. Every
primary key begins with ``pool``, so that one database can hold the history of several pools.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Float, Index, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from celery_allocator.model import besides


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC on both sides, also on SQLite, which knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """To the database. Raises :class:`ValueError` for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone: times of the history are aware")
        return value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


#: JSON that PostgreSQL keeps parsed.
Json = JSON().with_variant(JSONB(), "postgresql")


class Base(DeclarativeBase):
    """All tables of the history."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        int: Integer(),
        float: Float(),
        datetime: UTCDateTime(),
        dict[str, Any]: Json,
    }


class Event(Base):
    """One entry of the ledger's event stream, as it was. Append-only."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_at", "pool", "at", "ordinal"),
        Index("ix_events_object", "pool", "object_id"),
    )

    pool: Mapped[str] = mapped_column(primary_key=True)
    #: The entry's id, "ms-seq". As text it does not sort: order by ``at`` and ``ordinal``.
    event_id: Mapped[str] = mapped_column(primary_key=True)
    #: The id as one number that sorts as the stream does (see ``events.ordinal``).
    ordinal: Mapped[int] = mapped_column(BigInteger)
    event: Mapped[str]
    at: Mapped[datetime]
    #: What it is about: an allocation, a node, a worker, … (the entry's ``id``; may be empty).
    object_id: Mapped[str]
    task_id: Mapped[str]
    #: The entry's other fields, as texts.
    fields: Mapped[dict[str, Any]]


class AllocationRow(Base):
    """One allocation, from submit to outcome. ``None``: not known, or not yet."""

    __tablename__ = "allocations"
    __table_args__ = (
        Index("ix_allocations_submitted", "pool", "submitted_at"),
        Index("ix_allocations_ended", "pool", "ended_at"),
        Index("ix_allocations_last", "pool", "last_event_at"),
        Index("ix_allocations_task", "pool", "task_id"),
        Index("ix_allocations_name", "pool", "task_name", "submitted_at"),
    )

    pool: Mapped[str] = mapped_column(primary_key=True)
    allocation_id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    task_name: Mapped[str]
    tenant: Mapped[str]
    #: "task" or "manual".
    kind: Mapped[str | None]
    #: Of each GPU, where it asked for several.
    gpu_memory_mb: Mapped[int | None]
    gpu_count: Mapped[int | None]
    cpu_cores: Mapped[int | None]
    ram_mb: Mapped[int | None]
    priority: Mapped[int | None]
    strategy: Mapped[str | None]
    submitted_at: Mapped[datetime | None]
    eta_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    #: As promised when it was submitted, for one of two cases and for nine of ten; so is the position.
    estimated_start_at: Mapped[datetime | None]
    estimated_start_p90_at: Mapped[datetime | None]
    queue_position: Mapped[int | None]
    #: When it was put on hold, moved or given another priority before its first start: what was promised is void since.
    rearranged_at: Mapped[datetime | None]
    #: When a device was first kept for it, as the first in line that did not fit.
    reserved_at: Mapped[datetime | None]
    #: Of its last grant, and of its last start.
    granted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    #: delayed, waiting, on_hold, granted, running or released.
    state: Mapped[str]
    #: success, failure, cancelled, expired, lost, ttl, parked, …; ``None`` while it lives.
    outcome: Mapped[str | None]
    node: Mapped[str | None]
    #: The bare device, "gpu_0".
    device: Mapped[str | None]
    #: All of them, "n1/gpu_0 n1/gpu_1", where it was granted several.
    devices: Mapped[str | None]
    worker: Mapped[str | None]
    #: Core ids, "0,1".
    cores: Mapped[str | None]
    token: Mapped[int | None] = mapped_column(BigInteger)
    #: How often it was granted, and how often it lost its process or worker.
    grants: Mapped[int]
    losses: Mapped[int]
    #: From submit, or from its ETA, to its first start.
    wait_s: Mapped[float | None]
    #: Run time, and time from grant to give-back, over all tries.
    run_s: Mapped[float]
    held_s: Mapped[float]
    peak_gpu_memory_mb: Mapped[int | None]
    peak_ram_mb: Mapped[int | None]
    last_event_id: Mapped[str]
    last_event_at: Mapped[datetime]
    #: What it asked for besides amounts, as its shape writes that ("s=250;m=A100"; see ``model/shape.py``).
    more: Mapped[str | None]
    #: Of one with an affinity: whether its last grant was to where that was loaded: "hit" or "miss".
    affinity: Mapped[str | None]
    #: How often its claim grew after it ran out of GPU memory.
    grown: Mapped[int | None]
    #: The most that it was found to use, where that was more than it was promised.
    overuse_gpu_memory_mb: Mapped[int | None]
    overuse_ram_mb: Mapped[int | None]
    #: How many cores its run kept busy: CPU time over run time.
    cpu_cores_used: Mapped[float | None]

    @property
    def besides(self) -> tuple[str, ...]:
        """What it asked for besides amounts, for people."""
        return besides(self.more or "")


class NodeStateRow(Base):
    """One change of a node: it told what it has, went offline, was cordoned, …"""

    __tablename__ = "node_states"
    __table_args__ = (Index("ix_node_states_at", "pool", "at"),)

    pool: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    event: Mapped[str]
    #: online, offline, cordoned, draining or ready, as far as the event tells.
    state: Mapped[str | None]
    cpu_cores: Mapped[int | None]
    ram_mb: Mapped[int | None]
    #: Number of its devices.
    devices: Mapped[int | None]
    #: RAM that is given to nobody from then on (event ``withheld``): all of it, and by whom it is used.
    withheld_mb: Mapped[int | None]
    foreign_mb: Mapped[int | None]
    overuse_mb: Mapped[int | None]


class DeviceStateRow(Base):
    """One change of a device: a worker came or went, it was cordoned, …"""

    __tablename__ = "device_states"
    __table_args__ = (Index("ix_device_states_at", "pool", "at"),)

    pool: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    event: Mapped[str]
    #: online, serving, closing, idle, cordoned, draining or ready, as far as the event tells.
    state: Mapped[str | None]
    worker: Mapped[str | None]
    slots: Mapped[int | None]
    memory_mb: Mapped[int | None]
    #: Of its memory, what is given to nobody from then on (event ``withheld``): all of it, and by whom it is used.
    withheld_mb: Mapped[int | None]
    foreign_mb: Mapped[int | None]
    leftover_mb: Mapped[int | None]
    overuse_mb: Mapped[int | None]


class OperatorAction(Base):
    """One action of an operator, taken, undone or redone."""

    __tablename__ = "operator_actions"
    __table_args__ = (Index("ix_operator_actions_at", "pool", "at"),)

    pool: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    #: Its number in the ledger's journal.
    entry: Mapped[int | None] = mapped_column(BigInteger)
    at: Mapped[datetime]
    #: What was acted on: "node:n1", "device:n1/gpu_0", "allocation:alloc_…", "pool".
    object: Mapped[str]
    action: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str]
    #: done, undone or redone.
    state: Mapped[str]
    before: Mapped[str | None]
    after: Mapped[str | None]


class Gap(Base):
    """Entries that the recorder could not read any more. The bounds are the entries that it did read, or the time."""

    __tablename__ = "gaps"

    pool: Mapped[str] = mapped_column(primary_key=True)
    first_event_id: Mapped[str] = mapped_column(primary_key=True)
    last_event_id: Mapped[str] = mapped_column(primary_key=True)
    #: How many were missed; ``None``: not known.
    entries: Mapped[int | None] = mapped_column(BigInteger)
    noticed_at: Mapped[datetime]
    reason: Mapped[str]


class Cursor(Base):
    """How far the recorder of a pool has come."""

    __tablename__ = "cursors"

    pool: Mapped[str] = mapped_column(primary_key=True)
    last_event_id: Mapped[str]
    #: When that was written, and by whom (host:pid).
    recorded_at: Mapped[datetime]
    recorder: Mapped[str]
    #: Entries written by all recorders so far.
    recorded: Mapped[int] = mapped_column(BigInteger)
