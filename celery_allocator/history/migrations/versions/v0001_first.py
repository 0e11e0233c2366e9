"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "allocations",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("task_name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("gpu_memory_mb", sa.Integer(), nullable=True),
        sa.Column("cpu_cores", sa.Integer(), nullable=True),
        sa.Column("ram_mb", sa.Integer(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=True),
        sa.Column("strategy", sa.Text(), nullable=True),
        sa.Column("submitted_at", _TIME, nullable=True),
        sa.Column("eta_at", _TIME, nullable=True),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.Column("estimated_start_at", _TIME, nullable=True),
        sa.Column("queue_position", sa.Integer(), nullable=True),
        sa.Column("granted_at", _TIME, nullable=True),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("cores", sa.Text(), nullable=True),
        sa.Column("token", sa.BigInteger(), nullable=True),
        sa.Column("grants", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("wait_s", sa.Float(), nullable=True),
        sa.Column("run_s", sa.Float(), nullable=False),
        sa.Column("held_s", sa.Float(), nullable=False),
        sa.Column("peak_gpu_memory_mb", sa.Integer(), nullable=True),
        sa.Column("peak_ram_mb", sa.Integer(), nullable=True),
        sa.Column("last_event_id", sa.Text(), nullable=False),
        sa.Column("last_event_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("pool", "allocation_id"),
    )
    op.create_index("ix_allocations_ended", "allocations", ["pool", "ended_at"], unique=False)
    op.create_index("ix_allocations_last", "allocations", ["pool", "last_event_at"], unique=False)
    op.create_index("ix_allocations_name", "allocations", ["pool", "task_name", "submitted_at"], unique=False)
    op.create_index("ix_allocations_submitted", "allocations", ["pool", "submitted_at"], unique=False)
    op.create_index("ix_allocations_task", "allocations", ["pool", "task_id"], unique=False)
    op.create_table(
        "cursors",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("last_event_id", sa.Text(), nullable=False),
        sa.Column("recorded_at", _TIME, nullable=False),
        sa.Column("recorder", sa.Text(), nullable=False),
        sa.Column("recorded", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool"),
    )
    op.create_table(
        "device_states",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("slots", sa.Integer(), nullable=True),
        sa.Column("memory_mb", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("pool", "event_id", "node", "device"),
    )
    op.create_index("ix_device_states_at", "device_states", ["pool", "at"], unique=False)
    op.create_table(
        "events",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("fields", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("pool", "event_id"),
    )
    op.create_index("ix_events_at", "events", ["pool", "at", "ordinal"], unique=False)
    op.create_index("ix_events_object", "events", ["pool", "object_id"], unique=False)
    op.create_table(
        "gaps",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("first_event_id", sa.Text(), nullable=False),
        sa.Column("last_event_id", sa.Text(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=True),
        sa.Column("noticed_at", _TIME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "first_event_id", "last_event_id"),
    )
    op.create_table(
        "node_states",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("cpu_cores", sa.Integer(), nullable=True),
        sa.Column("ram_mb", sa.Integer(), nullable=True),
        sa.Column("devices", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("pool", "event_id", "node"),
    )
    op.create_index("ix_node_states_at", "node_states", ["pool", "at"], unique=False)
    op.create_table(
        "operator_actions",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("entry", sa.BigInteger(), nullable=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("pool", "event_id"),
    )
    op.create_index("ix_operator_actions_at", "operator_actions", ["pool", "at"], unique=False)


def downgrade() -> None:
    """Back to an empty database."""
    op.drop_index("ix_operator_actions_at", table_name="operator_actions")
    op.drop_table("operator_actions")
    op.drop_index("ix_node_states_at", table_name="node_states")
    op.drop_table("node_states")
    op.drop_table("gaps")
    op.drop_index("ix_events_object", table_name="events")
    op.drop_index("ix_events_at", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_device_states_at", table_name="device_states")
    op.drop_table("device_states")
    op.drop_table("cursors")
    op.drop_index("ix_allocations_task", table_name="allocations")
    op.drop_index("ix_allocations_submitted", table_name="allocations")
    op.drop_index("ix_allocations_name", table_name="allocations")
    op.drop_index("ix_allocations_last", table_name="allocations")
    op.drop_index("ix_allocations_ended", table_name="allocations")
    op.drop_table("allocations")
