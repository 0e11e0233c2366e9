"""The history: what the event stream said, kept in PostgreSQL or SQLite for as long as wanted.

::

    ledger's stream ─ recorder ─► events, allocations, node_states, … ─► history, report, gate, restore

Its libraries are the extra ``history``; names are loaded on first use, so that nothing else needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery_allocator.errors import HistoryExtraMissing

_EXPORTS = {
    "History": "store",
    "open_history": "store",
    "Recorder": "recorder",
    "RecorderThread": "recorder",
    "Progress": "recorder",
    "Schema": "schema",
    "Restoration": "restore",
    "Restorer": "restore",
    "Filter": "query",
    "allocations": "query",
    "devices": "query",
    "gaps": "query",
    "measured": "query",
    "Withholding": "withholding",
    "withheld_during": "withholding",
}

__all__ = [
    "Filter",
    "History",
    "Progress",
    "Recorder",
    "RecorderThread",
    "Restoration",
    "Restorer",
    "Schema",
    "Withholding",
    "allocations",
    "devices",
    "gaps",
    "load",
    "measured",
    "open_history",
    "withheld_during",
]

if TYPE_CHECKING:
    from celery_allocator.history.query import Filter, allocations, devices, gaps, measured
    from celery_allocator.history.recorder import Progress, Recorder, RecorderThread
    from celery_allocator.history.restore import Restoration, Restorer
    from celery_allocator.history.schema import Schema
    from celery_allocator.history.store import History, open_history
    from celery_allocator.history.withholding import Withholding, withheld_during

#: What the extra installs.
_LIBRARIES = ("sqlalchemy", "alembic", "psycopg")


def load(name: str) -> Any:
    """A name of this package. Raises :class:`HistoryExtraMissing` where its libraries are not installed."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _LIBRARIES:
            raise
        raise HistoryExtraMissing(
            f"the history needs {error.name}, which is not installed: pip install 'celery-allocator[history]'"
        ) from error
    globals()[name] = value
    return value


__getattr__ = load


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
