"""Tracing where there is nothing to trace with; its spans are in tests/acceptance/test_tracing.py."""

from __future__ import annotations

import subprocess
import sys

_WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from celery import Celery
from celery_allocator import install
from celery_allocator.plugin import running, sender, tracing
assert tracing.trace is None
app = install(Celery("plain", broker="memory://", set_as_current=False))
headers = {"task": "work"}
with tracing.submitting(app, headers) as answered:
    answered(None)
assert headers == {"task": "work"}
print("fine")
"""

_WITHOUT_SDK = """
from celery import Celery
from celery_allocator import install
from celery_allocator.plugin import tracing
app = install(Celery("plain", broker="memory://", set_as_current=False))
headers = {"task": "work"}
with tracing.submitting(app, headers):
    pass
assert headers == {"task": "work"}, headers
print("fine")
"""


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_without_the_package_nothing_changes() -> None:
    assert run(_WITHOUT) == "fine"


def test_without_a_configured_sdk_messages_carry_nothing() -> None:
    assert run(_WITHOUT_SDK) == "fine"
