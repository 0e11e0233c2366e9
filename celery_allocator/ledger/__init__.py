"""The slot ledger in Redis: client, keys, scripts. All placement and accounting happens in ``lua/``."""

from __future__ import annotations

from celery_allocator.ledger.client import Ledger, new_allocation_id
from celery_allocator.ledger.connection import connect, resolve_url
from celery_allocator.ledger.foretelling import Accuracy, Patience, Plan, Reservation
from celery_allocator.ledger.journal import Entry, Note, Operated, Page
from celery_allocator.ledger.recommending import Capacity, Learned, Recommendation, Usage
from celery_allocator.ledger.replies import (
    REFUSALS,
    Available,
    BreakerState,
    Cancelled,
    Grant,
    Grown,
    Line,
    Mailbox,
    Obituary,
    Options,
    Parked,
    Released,
    Repaired,
    Runtime,
    Submitted,
    Ticked,
    Withholding,
)
from celery_allocator.ledger.serving import Beat, Claim

__all__ = [
    "REFUSALS",
    "Accuracy",
    "Available",
    "Beat",
    "BreakerState",
    "Cancelled",
    "Capacity",
    "Claim",
    "Entry",
    "Grant",
    "Grown",
    "Learned",
    "Ledger",
    "Line",
    "Mailbox",
    "Note",
    "Obituary",
    "Operated",
    "Options",
    "Page",
    "Parked",
    "Patience",
    "Plan",
    "Recommendation",
    "Released",
    "Repaired",
    "Reservation",
    "Runtime",
    "Submitted",
    "Ticked",
    "Usage",
    "Withholding",
    "connect",
    "new_allocation_id",
    "resolve_url",
]
