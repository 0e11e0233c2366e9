"""OpenTelemetry spans of a task's way, in the task's own trace: submit, wait, dispatch, run.

Only where the package opentelemetry-api is installed (the extra ``tracing``); without a configured SDK its spans cost
next to nothing and go nowhere. Which process makes which span: the caller ``submit``, the process that runs the task
the other three, all children of ``submit``. A task's name, ids, sizes and places are told; arguments, results and texts
of exceptions are not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery, Task

from celery_allocator.ledger import Submitted
from celery_allocator.model import Allocation
from celery_allocator.plugin.session import session

try:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # the extra is not installed
    trace = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_TRACER = "celery_allocator"
#: Headers of a message that carry the trace (W3C Trace Context), as instrumentations of Celery use them.
_PARENT, _STATE = "traceparent", "tracestate"
_INSTRUMENTATION = "opentelemetry.instrumentation.celery"
#: Where a task's running span stands in its request until it ends.
_RUNNING = "_allocator_span"


@contextmanager
def submitting(app: Celery, headers: dict[str, Any]) -> Iterator[Callable[[Submitted], None]]:
    """Around a submission: its span, and the trace in the message's ``headers``. Call what it yields with the reply."""
    span = _begin_submit(app, headers)
    if span is None:
        yield lambda submitted: None
        return
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield lambda submitted: _answered(app, span, submitted)
    except BaseException as error:
        _quietly(_failed, span, type(error).__name__)
        raise
    finally:
        context.detach(token)
        _quietly(span.end)


def _begin_submit(app: Celery, headers: dict[str, Any]) -> Any:
    if not _wanted(app):
        return None
    name = headers.get("task")
    told = {"messaging.system": "celery", "messaging.operation.type": "send", "celery.task_name": str(name)}

    def begin() -> Any:
        span = trace.get_tracer(_TRACER).start_span(
            f"allocator submit {name}", kind=trace.SpanKind.PRODUCER, attributes=told
        )
        _carry(headers, span)
        return span

    return _quietly(begin)


def _answered(app: Celery, span: Any, submitted: Submitted) -> None:
    allocation = submitted.allocation
    told = {**_attributes(app, allocation), "celery_allocator.verdict": allocation.state.value}
    if allocation.queue_position:
        told["celery_allocator.queue_position"] = allocation.queue_position
    _quietly(span.set_attributes, told)


def _failed(span: Any, error: str) -> None:
    """With the class of the exception alone: its text may hold anything."""
    span.set_status(trace.Status(trace.StatusCode.ERROR, error))
    span.set_attribute("error.type", error or "unknown")


def _quietly(call: Callable[..., Any], *args: Any) -> Any:
    """What a call returns. An exporter or sampler that fails costs no submission and no task: that is only logged."""
    try:
        return call(*args)
    except Exception:
        logger.debug("tracing failed", exc_info=True)
        return None


def _carry(headers: dict[str, Any], span: Any) -> None:
    """Have the message carry this span, unless an instrumentation has just put its own around it in there.

    What a retry or a replaced task has kept of its predecessor's headers is no such thing.
    """
    if not span.get_span_context().is_valid:
        return
    theirs: dict[str, str] = {}
    parent = getattr(span, "parent", None)
    if parent is not None and parent.is_valid:
        around = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        TraceContextTextMapPropagator().inject(theirs, around)
    if theirs and headers.get(_PARENT) == theirs[_PARENT]:
        return
    headers.pop(_STATE, None)
    TraceContextTextMapPropagator().inject(headers, trace.set_span_in_context(span))


def began(task: Task, allocation: Allocation) -> None:
    """A task begins in this process: its wait and dispatch are told, and its run is the current span until it ends."""
    if _wanted(task.app):
        _quietly(_begin_run, task, allocation)


def _begin_run(task: Task, allocation: Allocation) -> None:
    request = task.request
    carried = {key: value for key in (_PARENT, _STATE) if isinstance(value := request.get(key), str)}
    parent = TraceContextTextMapPropagator().extract(carried, context.Context())
    tracer = trace.get_tracer(_TRACER)
    attributes = _attributes(task.app, allocation)
    granted, started = allocation.granted_at, allocation.started_at
    stretches = (("wait", allocation.submitted_at, granted), ("dispatch", granted, started))
    for what, begin, end in stretches:
        if begin is not None and end is not None:
            name = f"allocator {what} {task.name}"
            past = tracer.start_span(name, parent, attributes=attributes, start_time=_ns(begin))
            past.end(_ns(max(begin, end)))
    if _instrumented():  # its span `run/…` is the run
        return
    span = tracer.start_span(f"allocator run {task.name}", parent, kind=trace.SpanKind.CONSUMER, attributes=attributes)
    token = context.attach(trace.set_span_in_context(span, parent))
    setattr(request, _RUNNING, (span, token))


def ended(task: Task, outcome: str, error: str = "") -> None:
    """The task ends in this process. ``error``: the class of its exception."""
    running = getattr(task.request, _RUNNING, None)
    if running is None:
        return
    setattr(task.request, _RUNNING, None)
    span, token = running
    context.detach(token)
    _quietly(span.set_attribute, "celery_allocator.outcome", outcome)
    if outcome == "failure":
        _quietly(_failed, span, error)
    _quietly(span.end)


def _wanted(app: Celery) -> bool:
    """Not where no SDK is configured either: spans that go nowhere need no attributes."""
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    return session(app).settings.tracing


def _instrumented() -> bool:
    """Whether opentelemetry-instrumentation-celery is at work in this process."""
    found = getattr(sys.modules.get(_INSTRUMENTATION), "CeleryInstrumentor", None)
    return found is not None and bool(found().is_instrumented_by_opentelemetry)


def _attributes(app: Celery, allocation: Allocation) -> Mapping[str, Any]:
    """Names of OpenTelemetry's semantic conventions where it has one."""
    told = {
        "messaging.system": "celery",
        "messaging.message.id": allocation.task_id,
        "messaging.destination.name": allocation.queue,
        "celery.task_name": allocation.task_name,
        "host.name": allocation.node,
        "hw.id": allocation.gpu_uuid,
        "celery_allocator.pool": session(app).settings.pool,
        "celery_allocator.allocation_id": allocation.allocation_id,
        "celery_allocator.strategy": allocation.strategy.value,
        "celery_allocator.device": allocation.device_id,
        "celery_allocator.worker": allocation.worker,
        "celery_allocator.losses": allocation.losses,
        **{f"celery_allocator.{name}": value for name, value in allocation.requirements.as_dict().items()},
    }
    return {name: value for name, value in told.items() if value is not None}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
