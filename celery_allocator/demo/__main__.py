"""``python -m celery_allocator.demo``."""

from __future__ import annotations

from celery_allocator.demo.command import demo

demo(prog_name="celery-allocator demo")
