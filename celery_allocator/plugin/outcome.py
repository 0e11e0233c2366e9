"""Results of tasks that ended in the ledger: cancelled or expired while waiting, or lost with their worker.

Nobody else would ever write them, and ``AsyncResult.get()`` would wait for good.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.app.task import Context
from kombu import serialization
from kombu.compression import decompress

from celery_allocator.ledger import Obituary
from celery_allocator.plugin.envelope import Envelope
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

_REASONS = {"cancelled": "revoked", "expired": "expired"}
#: Never opened here, whatever the app accepts: messages come from the ledger.
_REFUSED = frozenset({"application/x-python-serialize"})


def write_results(app: Celery, obituaries: Iterable[Obituary]) -> None:
    """Write the results of ended tasks (REVOKED or FAILURE, with chords and errbacks told) and settle them.

    One that cannot be written is logged and tried again by a later tick.
    """
    written = []
    for obituary in obituaries:
        try:
            _write(app, obituary)
        except Exception:
            logger.exception("could not write the result of task %s (%s)", obituary.task_id, obituary.outcome)
        else:
            written.append(obituary.allocation_id)
    session(app).ledger.settle(written)


def cancel_tasks(app: Celery, task_ids: Iterable[str]) -> list[str]:
    """Cancel what has not started of these tasks, write their results, and return the ids that were cancelled."""
    ledger = session(app).ledger
    cancelled = []
    for task_id in task_ids:
        for allocation in ledger.find(task_id):
            reply = ledger.cancel(allocation.allocation_id)
            publish_grants(app, reply.grants)
            if reply.done:
                cancelled.append(task_id)
            if reply.obituary is not None:
                write_results(app, [reply.obituary])
    return cancelled


def _write(app: Celery, obituary: Obituary) -> None:
    if not obituary.message:
        return
    request = _context(app, Envelope.unpack(obituary.message))
    stores = not request.ignore_result
    if obituary.outcome in _REASONS:
        app.backend.mark_as_revoked(obituary.task_id, _REASONS[obituary.outcome], request=request, store_result=stores)
        return
    error = WorkerLostError(
        f"the worker that ran {obituary.task_name} was lost, and the task may not be repeated "
        "(acks_late is not set) or was lost too often"
    )
    app.backend.mark_as_failure(obituary.task_id, error, request=request, store_result=stores)


def _context(app: Celery, envelope: Envelope) -> Context:
    """The task's request as its worker would have had it, as far as the message tells."""
    accept = serialization.prepare_accept_content(app.conf.accept_content) - _REFUSED
    embedded: dict[str, Any] = {}
    compression = envelope.headers.get("compression")
    try:
        body = decompress(envelope.body, compression) if compression else envelope.body
        args, kwargs, embedded = serialization.loads(
            body, envelope.content_type, envelope.content_encoding, accept=accept
        )
    except Exception as error:  # noqa: BLE001  # in a refused format, or damaged: the result is written without callbacks
        logger.warning("could not read the body of task %s: %s", envelope.headers.get("id"), error)
        args, kwargs = (), {}
    return Context({**envelope.headers, **(embedded or {}), "args": args, "kwargs": kwargs})
