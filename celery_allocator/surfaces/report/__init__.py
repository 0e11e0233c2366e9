"""A report as a CSV file, and as an HTML page with plots."""

from __future__ import annotations

from celery_allocator.surfaces.report.page import html_page
from celery_allocator.surfaces.report.tabular import csv_text

__all__ = ["csv_text", "html_page"]
