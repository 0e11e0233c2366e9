"""Results of tasks that ended in the ledger: cancelled or expired while waiting, or lost with their worker.

Nobody else would ever write them, and ``AsyncResult.get()`` would wait for good.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import Celery, states
from celery.app.task import Context
from kombu import serialization
from kombu.compression import decompress
from kombu.exceptions import DecodeError

from celery_allocator.ledger import Obituary
from celery_allocator.operations import Effect
from celery_allocator.plugin.envelope import Envelope
from celery_allocator.plugin.publish import publish_grants
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

_REASONS = {"cancelled": "revoked", "expired": "expired"}
_UNREPORTED = "the ledger had it running on a worker that does not know it; it may have ended while the server was away"
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


def forget_ends(app: Celery, allocation_ids: Iterable[str]) -> None:
    """These tasks' ends were taken back: a result that says REVOKED is forgotten, so that they are pending again.

    Their callers may have read it already, and callbacks have run; that cannot be taken back.
    """
    ledger = session(app).ledger
    for allocation_id in allocation_ids:
        try:
            task_id = ledger.get(allocation_id).task_id
            if app.backend.get_state(task_id) == states.REVOKED:
                app.backend.forget(task_id)
        except Exception:
            logger.exception("could not forget the result of %s, whose cancel was undone", allocation_id)


def take_effect(app: Celery, effect: Effect) -> None:
    """What an operator's action has brought about, carried out: messages published, results written or forgotten."""
    publish_grants(app, effect.grants)
    if effect.obituaries:
        write_results(app, effect.obituaries)
    forget_ends(app, effect.revived)


def _write(app: Celery, obituary: Obituary) -> None:
    if not obituary.message:
        return
    request = _context(app, obituary)
    stores = not request.ignore_result
    if obituary.outcome in _REASONS:
        app.backend.mark_as_revoked(obituary.task_id, _REASONS[obituary.outcome], request=request, store_result=stores)
        return
    # It may have run to its end, and its process or worker been lost before the ledger heard of it.
    if stores and _has_ended(app, obituary.task_id):
        logger.info("task %s has a result already; it was %s afterwards", obituary.task_id, obituary.outcome)
        return
    app.backend.mark_as_failure(obituary.task_id, _error(obituary), request=request, store_result=stores)


def _error(obituary: Obituary) -> Any:
    """What the result says."""
    name = obituary.task_name
    if obituary.outcome == "parked":
        return DecodeError(
            f"the message of {name} cannot be read ({obituary.reason}). It is kept in the ledger: "
            f"celery-allocator parked shows it as {obituary.allocation_id}"
        )
    if obituary.outcome == "unreported":
        return WorkerLostError(f"{name} was lost: {_UNREPORTED}")
    if obituary.losses:
        return WorkerLostError(
            f"{name} lost its process or worker {obituary.losses + 1} times, and is not repeated more than "
            f"{obituary.losses} times (allocator_max_losses)"
        )
    return WorkerLostError(
        f"the process or worker that ran {name} was lost, and the task may not be repeated: acks_late is not set, "
        "or allocator_max_losses is 0"
    )


def _has_ended(app: Celery, task_id: str) -> bool:
    as_uri = getattr(app.backend, "as_uri", None)
    if callable(as_uri) and as_uri() == "rpc://":  # results lie on the caller's queue: nobody else can look
        return False
    return app.backend.get_state(task_id) in states.READY_STATES


def _context(app: Celery, obituary: Obituary) -> Context:
    """The task's request as its worker would have had it, as far as the message tells."""
    try:
        envelope = Envelope.unpack(obituary.message)
    except ValueError as error:  # the caller is told all the same, if without callbacks
        logger.error("the message of task %s cannot be read: %s", obituary.task_id, error)  # noqa: TRY400
        return Context({"id": obituary.task_id, "task": obituary.task_name})
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
