"""The server of one simulation: its own, in a folder of its own, gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from celery_allocator.embedded import EmbeddedServer

#: Seconds for which an answer is waited for: many commands may be sent at once.
_PATIENCE_S = 120.0


@contextmanager
def private_server(binary: Path | None = None) -> Iterator[redis.Redis]:
    """A client of an embedded server that lives as long as the block; the user's own is left alone.

    Nothing of it is kept, so that it need not write to the disk. Raises
    :class:`~celery_allocator.errors.EmbeddedServerError`.
    """
    with tempfile.TemporaryDirectory(prefix="allocator-simulation-") as folder:
        server = EmbeddedServer(Path(folder), binary)
        try:
            with redis.Redis.from_url(server.ensure(), socket_timeout=_PATIENCE_S) as client:
                client.config_set("appendonly", "no")
                yield client
        finally:
            server.stop()
