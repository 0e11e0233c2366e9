"""Where a worker's granted messages can be delivered by the ledger's own scripts.

If the broker is the very Redis server and database that holds the ledger, a queue is a list there, and the script that
grants can push the message onto it: no second round trip, and no moment at which a task is granted and not sent.
Everywhere else whoever receives the grant publishes it.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from redis.sentinel import SentinelConnectionPool

from celery_allocator.ledger import Ledger, Mailbox
from celery_allocator.ledger.servers import is_cluster
from celery_allocator.plugin.envelope import head

logger = logging.getLogger(__name__)


def find_mailbox(app: Celery, ledger: Ledger, queue: str) -> Mailbox | None:
    """The list behind ``queue``, or ``None`` if the app's broker is not the server and database of ``ledger``."""
    try:
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            client = getattr(channel, "client", None)
            if connection.transport.driver_type != "redis" or client is None or is_cluster(ledger.client):
                return None
            if _place_of(client) != _place_of(ledger.client):
                return None
            return Mailbox(f"{getattr(channel, 'global_keyprefix', '')}{queue}", head(queue))
    except (OperationalError, RedisError, OSError) as error:  # also a user that may not ask which server this is
        logger.info("granted tasks are published through the broker: %s", error)
        return None


def _place_of(client: redis.Redis) -> tuple[Any, int, bool]:
    """Which run of which server, which database, and whether Sentinel finds it (then both fail over together)."""
    pool = client.connection_pool
    return (
        client.info("server")["run_id"],
        int(pool.connection_kwargs.get("db") or 0),
        isinstance(pool, SentinelConnectionPool),
    )
