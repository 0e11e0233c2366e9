"""One pool of a ledger on Redis Cluster: connections to whichever primary holds the pool's slot.

All keys of a pool share one hash tag, so one primary holds them all, and an ordinary client that talks to that primary
is enough. What is special is finding it, at each new connection: after a failover or a move of the slot the old holder
says ``MOVED``, the connection is cut, and the next one leads to the new holder. There it is a *new* connection, so that
it asks first which run of the server it has met (see ``announcer.py``).

While the slot is being moved its keys are on two servers, and no script may run on a part of them: ``ASK`` counts as
"not now".
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError, TryAgainError

Address = tuple[str, int]


class Holder:
    """Finds the primary that holds one key's slot. Shared by the connections of one client."""

    def __init__(self, nodes: Sequence[Address], key: str, options: Mapping[str, Any]) -> None:
        """``nodes``: where to ask first; ``options``: keyword arguments of :class:`redis.Redis` for asking."""
        self.nodes = tuple(nodes)
        self.slot = key_slot(key.encode())
        self._options = dict(options)
        self._lock = threading.Lock()
        self._known: list[Address] = []
        self._address: Address | None = None

    def address(self) -> Address:
        """Host and port of the holder. Raises a connection error when no node can tell."""
        with self._lock:
            if self._address is None:
                self._address = self._ask_all()
            return self._address

    def forget(self, address: Address) -> None:
        """That one could not be reached: ask again next time."""
        with self._lock:
            if self._address == address:
                self._address = None

    def moved(self, by: Address, error: str) -> None:
        """A node said where the slot is now: ``[MOVED] <slot> <host>:<port>``; an empty host means its own."""
        host, _, port = error.rsplit(" ", 1)[-1].rpartition(":")
        with self._lock:
            self._address = (host or by[0], int(port)) if port.isdigit() else None

    def _ask_all(self) -> Address:
        failures = []
        for node in dict.fromkeys((*self._known, *self.nodes)):
            try:
                found = self._ask(node)
            except (RedisError, OSError) as error:
                failures.append(f"{node[0]}:{node[1]}: {error}")
                continue
            if found is not None:
                return found
            failures.append(f"{node[0]}:{node[1]}: nobody holds slot {self.slot}")
        raise RedisConnectionError(f"no node of the cluster tells who holds the pool: {'; '.join(failures)}")

    def _ask(self, node: Address) -> Address | None:
        client = redis.Redis(host=node[0], port=node[1], **self._options)
        try:
            rows = client.execute_command("CLUSTER", "SLOTS")
        finally:
            client.close()
        # A node that does not know its own name leaves it out: it is the one that was asked.
        primaries = {(first, last): (_text(named[0]) or node[0], int(named[1])) for first, last, named, *_ in rows}
        self._known = list(primaries.values())
        return next((at for (first, last), at in primaries.items() if first <= self.slot <= last), None)


class _ToTheHolder:
    """What a connection to the holder does differently; mixed into redis-py's connections."""

    host: str
    port: int

    def __init__(self, *, holder: Holder, **kwargs: Any) -> None:
        self._holder = holder
        super().__init__(**kwargs)

    def _connect(self) -> socket.socket:
        at = self._holder.address()
        self.host, self.port = at
        try:
            connected: socket.socket = super()._connect()  # type: ignore[misc]
        except (OSError, RedisError):
            self._holder.forget(at)
            raise
        return connected

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            # redis-py's names for these errors differ between its versions; the server's do not.
            word = getattr(error, "status_code", None) or str(error).split(" ", 1)[0]
            kind = type(error).__name__
            if word == "MOVED" or kind == "MovedError":
                self._holder.moved((self.host, self.port), str(error))
                self.disconnect()  # type: ignore[attr-defined]
                raise RedisConnectionError(f"the pool has moved to another node of the cluster ({error})") from error
            if word == "ASK" or kind == "AskError":
                raise TryAgainError(f"the pool is being moved to another node of the cluster ({error})") from error
            raise


class HolderConnection(_ToTheHolder, Connection):
    """A connection to the primary that holds the pool."""


class HolderSSLConnection(_ToTheHolder, SSLConnection):
    """The same over TLS."""


def _text(value: Any) -> str:
    text = value.decode() if isinstance(value, bytes) else str(value or "")
    return "" if text == "?" else text
