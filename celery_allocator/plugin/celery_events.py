"""Celery events ``allocator-…``: placements told to every monitor that listens to Celery's own events.

The ledger's event stream is read through a consumer group of its own, so the server knows how far it was told, whoever
has the duty. An entry is acknowledged when its batch has been handed to the broker: whoever takes over after a death
tells that batch once more at most, and leaves nothing out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from celery_allocator.ledger import Ledger
from celery_allocator.ledger.following import Missed, Unacknowledged
from celery_allocator.plugin.naming import queue_name
from celery_allocator.updates import change

logger = logging.getLogger(__name__)

#: The consumer group, and the one consumer in it: what one worker has read and not acknowledged is the next one's.
GROUP = CONSUMER = "celery-events"
#: Entries per read, so many are told twice at most.
BATCH = 100
#: Seconds after which an entry is not told any more: monitors show what is; what was is the history's.
STALE_S = 300.0
#: Seconds that a step reads on at most, before the duty is renewed.
_STEP_S = 2.0
#: Seconds between tries while the broker cannot be reached.
_RETRY_S = 5.0


class CeleryEvents:
    """What the duty ``celery-events`` does in each of its steps."""

    name = "celery-events"

    def __init__(self, app: Celery, worker: str) -> None:
        self._app = app
        self._worker = worker
        self._connection: Any = None
        self._dispatcher: Any = None
        self._try_at = 0.0
        self._complaint = ""
        #: Positions that the broker has taken, of a batch that is not acknowledged yet.
        self._told: set[str] = set()

    def step(self, ledger: Ledger) -> None:
        """Tell what has come. Leaves it all in the stream while the broker is away."""
        end = time.monotonic() + _STEP_S
        if end - _STEP_S < self._try_at:
            return
        while (entries := _read(ledger)) and time.monotonic() < end:
            fresh = ledger.server_time() - STALE_S
            told = [event for event in (celery_event(*entry, ledger.pool) for entry in entries) if event is not None]
            young = [fields for fields in told if fields["timestamp"] >= fresh]
            if not self._send([fields for fields in young if fields["position"] not in self._told]):
                return
            if len(young) < len(told):
                logger.warning("%s: %d events are too old to be told", self.name, len(told) - len(young))
            ledger.acknowledge(GROUP, [at for at, _ in entries])
            self._told.clear()

    def retire(self) -> None:
        """Somebody else tells them now."""
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception:  # it may be broken already
                logger.debug("%s: the connection was gone", self.name, exc_info=True)

    def _send(self, events: list[dict[str, Any]]) -> bool:
        """Hand events to the broker; whether it took them all."""
        if self._connection is None:
            # Nobody serves the heartbeats of this connection, so there are none: the broker need not close it.
            self._connection = self._app.connection_for_write(heartbeat=0)
        away = (*self._connection.connection_errors, *self._connection.channel_errors, OperationalError, OSError)
        try:
            if self._dispatcher is None:
                self._connection.connect()
                self._dispatcher = self._app.events.Dispatcher(
                    channel=self._connection.channel(), hostname=self._worker, buffer_while_offline=False
                )
            for fields in events:
                self._dispatcher.send(**fields)
                self._told.add(fields["position"])
        except away as error:
            self.retire()
            self._try_at = time.monotonic() + _RETRY_S
            if self._complaint != str(error):
                logger.warning("%s: %s; trying again", self.name, error)
            self._complaint = str(error)
            return False
        self._complaint = ""
        return True


def celery_event(position: str, entry: Mapping[str, str], pool: str) -> dict[str, Any] | None:
    """One entry of the event stream as a Celery event; ``None`` for what is left out.

    ``type`` is ``allocator-`` and the entry's name with hyphens; ``uuid``: the task's id, where there is one;
    ``timestamp``: the ledger's; ``position``: the entry's id, by which a repeated one is known.
    """
    found = change(position, entry)
    if found is None:
        return None
    fields = dict(found.fields)
    what, at = fields.pop("event"), fields.pop("at", None)
    if not isinstance(at, float):  # somebody else wrote to the stream
        return None
    told: dict[str, Any] = {
        "type": f"allocator-{what.replace('_', '-')}",
        "timestamp": at,
        "position": position,
        "pool": pool,
        "object": found.object,
        "id": found.id,
        "actor": found.actor,
    }
    if (task := fields.pop("task_id", None)) is not None:
        told["uuid"] = task
    device = found.id if found.object == "device" else fields.pop("device", None)
    if device:
        node, _, name = device.partition("/")
        told |= {"node": node, "device": name, "queue": queue_name(pool, node, name)}
    elif found.object == "node":
        told["node"] = found.id
    return {**fields.pop("operated", {}), **fields, **told}


def _read(ledger: Ledger) -> list[tuple[str, dict[str, str]]]:
    """The next entries: first those that were read before and not acknowledged."""
    accepted, again = 0, False
    while True:
        found = ledger.read_events(GROUP, CONSUMER, BATCH, unacknowledged=again, accepted=accepted)
        if found is None:  # the first time, or the server has lost it
            ledger.open_group(GROUP, newest=True)
            return []
        if isinstance(found, Unacknowledged):
            again = True
        elif isinstance(found, Missed):
            logger.warning("%s: %d entries were trimmed before they were told", GROUP, found.entries)
            accepted = found.trimmed
        else:
            gone = [at for at, fields in found.entries if fields is None]
            ledger.acknowledge(GROUP, gone)
            entries = [(at, fields) for at, fields in found.entries if fields is not None]
            if entries or not gone:
                return entries
