"""What people look at: the pool as bars and cells, who runs, who waits and why. Reads the ledger; decides nothing."""

from __future__ import annotations

from celery_allocator.overview.bars import Bar
from celery_allocator.overview.cluster import Core, DeviceView, NodeView, Overview, Running, read_overview
from celery_allocator.overview.explain import Explanation, Holder, Place, explain
from celery_allocator.overview.faults import FAULTS, OTHER, fault
from celery_allocator.overview.outlook import Kept, Outlook, read_outlook
from celery_allocator.overview.reasons import Lack, Reason, why
from celery_allocator.overview.turns import why_waiting
from celery_allocator.overview.waiting import Match, Page, Waiting, read_waiting
from celery_allocator.overview.withholding import of_cluster, of_device, of_node, of_tasks

__all__ = [
    "FAULTS",
    "OTHER",
    "Bar",
    "Core",
    "DeviceView",
    "Explanation",
    "Holder",
    "Kept",
    "Lack",
    "Match",
    "NodeView",
    "Outlook",
    "Overview",
    "Page",
    "Place",
    "Reason",
    "Running",
    "Waiting",
    "explain",
    "fault",
    "of_cluster",
    "of_device",
    "of_node",
    "of_tasks",
    "read_outlook",
    "read_overview",
    "read_waiting",
    "why",
    "why_waiting",
]
