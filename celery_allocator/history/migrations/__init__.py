"""Migrations of the history's tables, run by Alembic (see :mod:`celery_allocator.history.schema`)."""

from __future__ import annotations
