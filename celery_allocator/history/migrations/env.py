"""What Alembic runs: the migrations, on the connection and in the transaction that it was given."""

from __future__ import annotations

from alembic import context

from celery_allocator.history.models import Base
from celery_allocator.history.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    # SQLite changes a column by making its table anew.
    render_as_batch=True,
)
context.run_migrations()
