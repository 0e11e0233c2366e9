"""Put granted messages on the queues of their devices."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery

from celery_allocator.errors import AllocatorError
from celery_allocator.ledger import Grant
from celery_allocator.plugin.envelope import HEADER, Envelope
from celery_allocator.plugin.session import session

logger = logging.getLogger(__name__)


def publish(producer: Any, queue: str, token: int, envelope: Envelope, **options: Any) -> None:
    """Publish one granted message. ``options`` go to kombu's ``Producer.publish`` (retry, retry_policy, timeout …)."""
    headers = dict(envelope.headers)
    headers[HEADER] = {**headers[HEADER], "token": token}
    producer.publish(
        envelope.body,
        # The default exchange reaches the queue of that name on every broker; its worker has declared it.
        exchange="",
        routing_key=queue,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        headers=headers,
        delivery_mode=envelope.delivery_mode,
        **envelope.properties,
        **options,
    )


def publish_grants(app: Celery, grants: Iterable[Grant]) -> None:
    """Publish grants that came back from the ledger.

    A failure is logged, not raised: a grant that does not start is published again by the next tick after its deadline.
    A message that cannot be read is parked.
    """
    grants = tuple(grants)
    if not grants:
        return
    try:
        with app.producer_pool.acquire(block=True) as producer:
            for grant in grants:
                try:
                    envelope = Envelope.unpack(grant.message)
                except ValueError as error:
                    park(app, grant.allocation_id, grant.token, str(error))
                    continue
                policy = dict(app.conf.task_publish_retry_policy)
                publish(producer, grant.queue, grant.token, envelope, retry=True, retry_policy=policy)
    except Exception:
        ids = ", ".join(grant.allocation_id for grant in grants)
        logger.exception("could not publish granted tasks (%s): the next tick will", ids)


def park(app: Celery, allocation_id: str, token: int, reason: str) -> None:
    """Keep a task whose message cannot be read for an operator; the next tick has its result written.

    Others take its place: those that cannot be published here are left to that tick, too.
    """
    logger.error("the message of %s is parked, since it cannot be read: %s", allocation_id, reason)
    try:
        session(app).ledger.park(allocation_id, reason, token, publishes=False)
    except AllocatorError as error:
        logger.error("could not park %s: %s", allocation_id, error)  # noqa: TRY400
