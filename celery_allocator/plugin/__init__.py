"""Everything Celery calls: router, sender, gate, request, bootsteps, signals, control.

The way of a task through these files::

    apply_async ─ router ─ sender ──► ledger          (producer: any process)
    ledger's grant ─ publish ──► queue of a device    (whoever got the grant: producer, child or keeper)
    queue ─ gate ─ request ─ pool                     (worker, main process)
    running ─ release ─ publish the next grants       (worker, child)
    keeper: heartbeat, tick, what the child could not release        (worker, main process, own thread)
"""

from __future__ import annotations

from celery_allocator.plugin.install import install, is_installed
from celery_allocator.plugin.running import current_allocation

__all__ = ["current_allocation", "install", "is_installed"]
