"""The node launcher: one Celery worker per device and one for CPU work, supervised in the foreground.

It is what ``celery -A proj allocator workers`` runs. Standard library only, besides the inventory it reads.
"""

from __future__ import annotations

from celery_allocator.launcher.launch import run_workers
from celery_allocator.launcher.plan import WorkerCommand, plan
from celery_allocator.launcher.supervisor import Policy, Supervisor

__all__ = ["Policy", "Supervisor", "WorkerCommand", "plan", "run_workers"]
