"""The pool in figures, for Prometheus: what is there, what is held, what happened.

::

    ledger ─ snapshot, line ─ looks ───► gauges ─────────┐
           ─ event stream ─── follower ► tallies ────────┼─► collector ─► /metrics
    history ─ cursor, gaps ── recorded ► recorder's lag ─┘

``table.py`` says what there is, in one table; the documentation is rendered from it. The library that writes the text
form is the extra ``metrics``: only ``collector.py`` and ``exporter.py`` need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from celery_allocator.errors import MetricsExtraMissing

_LIBRARY = "prometheus_client"


def load(name: str) -> Any:
    """A name of ``exporter.py``. Raises :class:`MetricsExtraMissing` where its library is not installed."""
    try:
        return getattr(import_module(f"{__name__}.exporter"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != _LIBRARY:
            raise
        raise MetricsExtraMissing(
            f"metrics need {error.name}, which is not installed: pip install 'celery-allocator[metrics]'"
        ) from error
