"""The gate: a delivery runs only if its grant is the live one.

Wraps the strategy of each task. A delivery with an allocation is asked for at the ledger: if the token is live the
request is made as always. If not (delivered twice, granted again elsewhere, cancelled meanwhile) it is dropped. The
broker has settled the message with its delivery: the device's queue is consumed without acknowledgements, and the
ledger's copy is what "late ack" means, so that no visibility timeout and no consumer timeout can touch a long task. A
delivery from any other queue is acknowledged here, in either case.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default as default_strategy
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_allocator.errors import LedgerUnavailable, StaleTokenError
from celery_allocator.plugin.envelope import HEADER, own_header
from celery_allocator.plugin.publish import park
from celery_allocator.plugin.running import FENCE, GRANT, TOTALS
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)

#: Seconds until a delivery that could not be checked, because the ledger did not answer, is checked again.
_RETRY_S = 1.0


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Any:
    """Celery's default strategy behind the gate (``Task.Strategy``)."""
    plain = default_strategy(task, app, consumer, **kwargs)
    connection_errors = consumer.connection_errors

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        header = own_header(message.headers)
        if not header:
            return plain(message, body, ack, reject, callbacks, **options)
        # One delivery, one nonce, also when the check is repeated.
        nonce = header.setdefault("nonce", uuid.uuid4().hex)
        keeper = session(app).keeper
        allocation_id, token = header["id"], header.get("token", 0)
        if header.get("queue"):  # put there by the ledger itself, which does not know what brokers tell
            message.delivery_info["routing_key"] = header["queue"]
        if keeper is not None and (message.delivery_info or {}).get("routing_key") == keeper.queue:
            ack = _settled
        try:
            if keeper is None:
                raise StaleTokenError(f"{allocation_id}: this worker serves no device")  # noqa: TRY301
            allocation = keeper.start(allocation_id, token, nonce, bool(task.acks_late))
        except StaleTokenError as stale:
            logger.info("dropped a delivery of %s[%s]: %s", task.name, message.headers.get("id"), stale)
            ack(logger, connection_errors)
            return None
        except LedgerUnavailable as error:
            logger.info("%s; asking again for %s in %s s", error, allocation_id, _RETRY_S)
            consumer.timer.call_after(_RETRY_S, handle, (message, body, ack, reject, callbacks))
            return None
        ack(logger, connection_errors)
        # The ETA was the ledger's to keep; the worker's own clock has no say in it any more.
        message.headers["eta"] = None
        beside = {FENCE: keeper.fence.losses, TOTALS: keeper.totals_mb(allocation)}
        message.headers[HEADER] = {**header, GRANT: {**allocation.to_wire(), **beside}}
        try:
            return plain(message, body, _settled, _settled, callbacks, **options)
        except (DecodeError, ContentDisallowed, InvalidTaskError) as error:
            park(app, allocation_id, allocation.token, f"{type(error).__name__}: {error}")
            return None
        except BaseException:
            keeper.ended(allocation, "rejected")
            raise

    return handle


def _settled(*args: Any, **kwargs: Any) -> None:
    """Stands in for ack and reject: the broker's message is settled already, the request settles the ledger's."""
