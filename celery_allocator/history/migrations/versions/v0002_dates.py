"""What was promised at submit, what was kept for it meanwhile, and several GPUs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this version. Nothing of it is known of rows written before."""
    op.add_column("allocations", sa.Column("estimated_start_p90_at", _TIME, nullable=True))
    op.add_column("allocations", sa.Column("rearranged_at", _TIME, nullable=True))
    op.add_column("allocations", sa.Column("reserved_at", _TIME, nullable=True))
    op.add_column("allocations", sa.Column("gpu_count", sa.Integer(), nullable=True))
    op.add_column("allocations", sa.Column("devices", sa.Text(), nullable=True))


def downgrade() -> None:
    """Back to the first tables."""
    op.drop_column("allocations", "devices")
    op.drop_column("allocations", "gpu_count")
    op.drop_column("allocations", "reserved_at")
    op.drop_column("allocations", "rearranged_at")
    op.drop_column("allocations", "estimated_start_p90_at")
