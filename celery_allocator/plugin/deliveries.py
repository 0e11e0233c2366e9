"""The two things that couriers carry for an app: messages of granted tasks, and results of tasks that ended unrun."""

from __future__ import annotations

from celery import Celery

from celery_allocator.plugin.courier import Courier
from celery_allocator.plugin.outcome import write_results
from celery_allocator.plugin.publish import publish_grants


def messages(app: Celery, name: str) -> Courier:
    """Publishes what was granted; one grant is one message."""
    return Courier(name, lambda grants: publish_grants(app, grants), lambda grant: (grant.allocation_id, grant.token))


def results(app: Celery, name: str) -> Courier:
    """Writes the results of tasks that ended in the ledger."""
    return Courier(name, lambda some: write_results(app, some), lambda obituary: obituary.allocation_id)
