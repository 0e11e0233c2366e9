"""The simulator: a trace of arrivals and durations through the ledger's own scripts, on a private server."""

from __future__ import annotations

from celery_allocator.simulator.figures import Dates, Figures, OfTenant, Waits, figures
from celery_allocator.simulator.private import private_server
from celery_allocator.simulator.replay import OPTIONS, Moment, Replay, Replayed, TaskRun
from celery_allocator.simulator.trace import NODE_COLUMNS, TRACE_COLUMNS, TraceTask, read_nodes, read_trace

__all__ = [
    "NODE_COLUMNS",
    "OPTIONS",
    "TRACE_COLUMNS",
    "Dates",
    "Figures",
    "Moment",
    "OfTenant",
    "Replay",
    "Replayed",
    "TaskRun",
    "TraceTask",
    "Waits",
    "figures",
    "private_server",
    "read_nodes",
    "read_trace",
]
