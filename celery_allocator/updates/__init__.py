"""Live updates: what other systems tell this pool to do, and what they are told of its changes."""

from __future__ import annotations

from celery_allocator.updates.changes import Change, change
from celery_allocator.updates.form import MAX_BYTES, OBJECTS, OPERATIONS, Reply, Update
from celery_allocator.updates.intake import Intake
from celery_allocator.updates.listening import Listener
from celery_allocator.updates.relaying import Relay
from celery_allocator.updates.watching import Watch, watch

__all__ = [
    "MAX_BYTES",
    "OBJECTS",
    "OPERATIONS",
    "Change",
    "Intake",
    "Listener",
    "Relay",
    "Reply",
    "Update",
    "Watch",
    "change",
    "watch",
]
