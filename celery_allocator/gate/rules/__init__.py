"""The kinds of rules that come along. Importing this registers them."""

from __future__ import annotations

from celery_allocator.gate.rules import capacity, endings, grants, idle, live, waits

__all__ = ["capacity", "endings", "grants", "idle", "live", "waits"]
