"""The sender: Celery's own, with the ledger between it and the broker for tasks that have requirements.

Celery's sender does everything it always does (signals, chains, chords, stamps, events); only the producer it publishes
with is another one, whose ``publish`` submits the finished message to the ledger in one call. If the grant comes back,
the message goes to that device's queue at once; else it waits in the ledger.
"""

from __future__ import annotations

import inspect
import logging
import numbers
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.exceptions import OperationalError
from kombu.utils.functional import retry_over_time

from celery_allocator.errors import (
    LedgerError,
    LedgerUnavailable,
    MessageTooLargeError,
    SettingsError,
    TenantCapError,
    UnsatisfiableError,
)
from celery_allocator.ledger import Submitted, new_allocation_id
from celery_allocator.model import Requirements, State, Strategy
from celery_allocator.plugin.envelope import HEADER, Envelope
from celery_allocator.plugin.publish import publish
from celery_allocator.plugin.router import RESOURCES, STRATEGY, AllocatorRouter, installed_router, requirements_header
from celery_allocator.plugin.session import session
from celery_allocator.plugin.tracing import submitting

logger = logging.getLogger(__name__)

#: What whoever calls a task that can never fit is told.
_HINT = "Ask for less, start a worker on a larger device, or let such tasks wait for one: allocator_never_fits='wait'"

_TASK_PARAMETERS = inspect.signature(AMQP.as_task_v2)


class AllocatorAMQP(AMQP):
    """Celery's AMQP with the allocator's router and sender (``app.amqp_cls``)."""

    def Router(self, queues: Any = None, create_missing: bool | None = None) -> AllocatorRouter:  # noqa: N802
        return installed_router(self.app, queues, create_missing)

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        """Celery's, with ``countdown`` and ``expires`` in seconds counted by the ledger's clock.

        The ledger wakes and ends tasks by that one; a caller (or a worker whose task calls ``retry``) may have another.
        """
        given = _TASK_PARAMETERS.bind(self, *args, **options).arguments
        counted = given.get("countdown") or isinstance(given.get("expires"), numbers.Real)
        if counted and not given.get("now") and options.get(RESOURCES) is not None:
            options["now"] = self._ledgers_now()
        return super().as_task_v2(*args, **options)

    def _ledgers_now(self) -> datetime | None:
        now: datetime = self.app.now()
        try:
            return now + timedelta(seconds=session(self.app).ledger.server_time() - now.timestamp())
        except LedgerError:  # the submission that follows tries again, and raises
            return None

    def _create_task_sender(self) -> Any:
        plain = super()._create_task_sender()
        app = self.app

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            requirements = options.pop(RESOURCES, None)
            if requirements is None:
                return plain(producer, name, message, **options)
            strategy = options.pop(STRATEGY)
            if "id" not in message.headers:
                raise SettingsError("tasks with resources need task_protocol = 2 (Celery's default), not 1")
            return plain(LedgerProducer(app, producer, requirements, strategy), name, message, **options)

        return send_task_message


class LedgerProducer:
    """A kombu producer whose :meth:`publish` goes through the ledger. Everything else is the real producer's."""

    def __init__(self, app: Celery, producer: Any, requirements: Requirements, strategy: Strategy) -> None:
        self._app = app
        self._producer = producer
        self._requirements = requirements
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(
        self,
        body: Any,
        *,
        headers: dict[str, Any],
        serializer: str | None = None,
        compression: str | None = None,
        delivery_mode: Any = None,
        retry: bool = False,
        retry_policy: dict[str, Any] | None = None,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        exchange: Any = None,
        routing_key: Any = None,
        declare: Any = None,
        expiration: Any = None,
        **properties: Any,
    ) -> None:
        """Submit the message; publish it if it was granted.

        ``exchange``, ``routing_key`` and ``declare`` are dropped (placing is the ledger's business), and so is the
        broker's ``expiration`` (the ledger ends expired tasks). Raises what the broker or the ledger raises; a ledger
        that cannot be reached is an ``OperationalError``, as a broker that is down. A message larger than the ledger
        keeps is refused before anything is claimed: :class:`MessageTooLargeError`.
        """
        allocation_id = new_allocation_id()
        headers = dict(headers)
        headers[HEADER] = requirements_header(allocation_id, self._requirements, self._strategy)
        policy = retry_policy or {}
        with submitting(self._app, headers) as answered:
            # What kombu itself would do to the body next; it offers no public name for it.
            data, content_type, content_encoding = self._producer._prepare(  # noqa: SLF001
                body, serializer=serializer, compression=compression, headers=headers
            )
            if isinstance(data, str):
                data = data.encode(content_encoding)
            envelope = Envelope(data, content_type, content_encoding, headers, properties, delivery_mode)
            submitted = self._submit(allocation_id, envelope, policy if retry else None)
            answered(submitted)
        allocation = submitted.allocation
        if allocation.state is not State.GRANTED or submitted.known or submitted.delivered:
            return
        options = {"retry": retry, "retry_policy": policy, "timeout": timeout, "confirm_timeout": confirm_timeout}
        try:
            publish(self._producer, str(allocation.queue), allocation.token, envelope, **options)
        except BaseException:
            # The caller is told that the task was not sent: it must not run after all.
            self._take_back(allocation_id)
            raise

    def _take_back(self, allocation_id: str) -> None:
        ledger = session(self._app).ledger
        try:
            ledger.cancel(allocation_id, "unpublished", publishes=False)
            ledger.settle([allocation_id])
        except LedgerError as error:
            logger.warning("could not take back %s, which was not published: %s", allocation_id, error)

    def _submit(self, allocation_id: str, envelope: Envelope, policy: dict[str, Any] | None) -> Submitted:
        current = session(self._app)
        message = envelope.pack()
        if len(message) > current.settings.max_message_bytes:
            raise MessageTooLargeError(envelope.headers["task"], len(message), current.settings.max_message_bytes)

        def submit() -> Submitted:
            return current.ledger.submit(
                allocation_id,
                envelope.headers["id"],
                envelope.headers["task"],
                self._requirements,
                strategy=self._strategy,
                message=message,
                eta_at=_timestamp(self._app, envelope.headers.get("eta")),
                expires_at=_timestamp(self._app, envelope.headers.get("expires")),
                on_never=current.settings.never_fits,
            )

        try:
            if policy is None:
                return submit()
            answer: Submitted = retry_over_time(
                submit,
                LedgerUnavailable,
                max_retries=policy.get("max_retries", 3),
                interval_start=policy.get("interval_start", 0),
                interval_step=policy.get("interval_step", 0.2),
                interval_max=policy.get("interval_max", 0.2),
            )
        except LedgerUnavailable as error:
            raise OperationalError(str(error)) from error
        except TenantCapError:
            raise
        except UnsatisfiableError as error:
            raise UnsatisfiableError(error.dimension, error.requested, error.largest, _HINT) from None
        return answer


def _timestamp(app: Celery, text: str | datetime | None) -> float | None:
    if not text:
        return None
    when = maybe_iso8601(text)
    return float(maybe_make_aware(when, app.timezone).timestamp())
