"""The zoo with an OpenTelemetry SDK that writes spans to the file ``TRACE_FILE``, one JSON object a line.

As a program it is a producer: ``python -m tests.support.traced_app NAME ARGS…`` sends one task, or a chain of two,
within a span of its own, and waits for the result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from celery import Celery, chain
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.support import allocator_app


class FileExporter(SpanExporter):
    """Appends; lines of several processes do not mix."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(
            json.dumps(
                {
                    "name": span.name,
                    "trace": f"{span.context.trace_id:032x}",
                    "id": f"{span.context.span_id:016x}",
                    "parent": f"{span.parent.span_id:016x}" if span.parent else None,
                    "start": span.start_time,
                    "end": span.end_time,
                    "status": span.status.status_code.name,
                    "attributes": dict(span.attributes or {}),
                    "pid": os.getpid(),
                }
            )
            + "\n"
            for span in spans
        )
        file = os.open(os.environ["TRACE_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, lines.encode())
        finally:
            os.close(file)
        return SpanExportResult.SUCCESS


if "TRACE_FILE" in os.environ:
    provider = TracerProvider()
    # Exports within the call: no thread that a fork would lose.
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    trace.set_tracer_provider(provider)
if os.environ.get("TRACE_CELERY") == "before":
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    CeleryInstrumentor().instrument()


def make_app() -> Celery:
    """The zoo, and a task with a span of its own."""
    app = allocator_app.make_app()

    @app.task(name="zoo.traced", shared=False, resources=allocator_app.GPU)
    def traced(fails: bool = False) -> str:
        with trace.get_tracer("user").start_as_current_span("user work"):
            if fails:
                raise ValueError("the text of an exception is nobody's business")
        return "done"

    return app


app = make_app()
# The instrumentation of Celery looks tasks up in the current app.
app.set_current()
app.set_default()
if os.environ.get("TRACE_CELERY") == "after":
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    CeleryInstrumentor().instrument()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    arguments = [json.loads(argument) for argument in arguments]
    with trace.get_tracer("user").start_as_current_span("user request"):
        if name == "chain":
            sent = chain(app.signature("zoo.add", (1, 2)), app.signature("zoo.add", (3,)))()
        else:
            sent = app.tasks[name].apply_async(arguments)
    sys.stdout.write(json.dumps(sent.get(timeout=60, propagate=False), default=repr))
