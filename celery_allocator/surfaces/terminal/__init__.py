"""The pool on a whole terminal, live: ``celery-allocator top``. Only what holds the screen needs Textual."""

from __future__ import annotations
