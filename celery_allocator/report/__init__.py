"""Reports: what a stretch of the history comes to, per name, tenant, device or day, and over time.

::

    history ─ rows and stretches ─► figures per group ─► totals   ─► table, JSON, CSV, HTML (in surfaces/)
                                 └► series over time  ─► plots

Every number is defined in ``docs/howto/reports.md``.
"""

from __future__ import annotations

from celery_allocator.report.build import DIMENSIONS, make_report
from celery_allocator.report.figures import FIGURES, Figures
from celery_allocator.report.result import GapSpan, Group, Report
from celery_allocator.report.series import DeviceLoad, Series

__all__ = [
    "DIMENSIONS",
    "FIGURES",
    "DeviceLoad",
    "Figures",
    "GapSpan",
    "Group",
    "Report",
    "Series",
    "make_report",
]
