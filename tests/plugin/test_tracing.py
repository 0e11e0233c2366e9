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


_FAILING = """
from celery import Celery
from celery_allocator import install
from celery_allocator.plugin import tracing
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

class Broken(SpanProcessor):
    def on_start(self, span, parent_context=None):
        if span.name.endswith("never"):
            raise RuntimeError("no start")
    def on_end(self, span):
        raise RuntimeError("no end")

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
provider.add_span_processor(Broken())
trace.set_tracer_provider(provider)
app = install(Celery("plain", broker="memory://", set_as_current=False))
with tracing.submitting(app, {"task": "never"}):
    pass
headers = {"task": "work"}
try:
    with tracing.submitting(app, headers):
        raise KeyError("a secret argument")
except KeyError:
    pass
assert "traceparent" in headers
assert not trace.get_current_span().get_span_context().is_valid
(span,) = kept.get_finished_spans()
assert (span.status.status_code.name, span.attributes["error.type"]) == ("ERROR", "KeyError")
assert "secret" not in span.to_json()
print("fine")
"""


def test_an_exporter_that_fails_costs_nothing_and_no_text_of_an_exception_gets_out() -> None:
    assert run(_FAILING) == "fine"
