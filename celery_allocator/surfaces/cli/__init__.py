"""The command line: ``celery -A proj allocator …`` and the console script ``celery-allocator …``, one group."""

from __future__ import annotations

from celery_allocator.surfaces.cli.group import allocator, main

__all__ = ["allocator", "main"]
