"""What was asked for besides amounts, what was used beyond a promise or grew, and what of a device was withheld."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ALLOCATIONS = (
    ("more", sa.Text()),
    ("affinity", sa.Text()),
    ("grown", sa.Integer()),
    ("overuse_gpu_memory_mb", sa.Integer()),
    ("overuse_ram_mb", sa.Integer()),
    ("cpu_cores_used", sa.Float()),
)
_NODES = ("withheld_mb", "foreign_mb", "overuse_mb")
_DEVICES = ("withheld_mb", "foreign_mb", "leftover_mb", "overuse_mb")


def upgrade() -> None:
    """To this version. Nothing of it is known of rows written before."""
    for name, kind in _ALLOCATIONS:
        op.add_column("allocations", sa.Column(name, kind, nullable=True))
    for table, names in (("node_states", _NODES), ("device_states", _DEVICES)):
        for name in names:
            op.add_column(table, sa.Column(name, sa.Integer(), nullable=True))


def downgrade() -> None:
    """Back to the version before. Rows that only tell what was withheld go: they would tell nothing."""
    for table, names in (("device_states", _DEVICES), ("node_states", _NODES)):
        op.execute(f"DELETE FROM {table} WHERE event = 'withheld'")  # noqa: S608 (a name from here)
        for name in reversed(names):
            op.drop_column(table, name)
    for name, _ in reversed(_ALLOCATIONS):
        op.drop_column("allocations", name)
