"""The way to one pool's ledger: its client, its constants, and what the server's refusals mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_allocator.errors import LabelError, LedgerError, LedgerUnavailable
from celery_allocator.ledger import keys, scripts, servers
from celery_allocator.ledger.announcer import Announcer
from celery_allocator.ledger.replies import Options
from celery_allocator.ledger.strategies import try_strategy

#: A server that says one of these cannot serve now and may soon: loading, failing over, full, without its disk.
_FOR_NOW = (ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)
_FOR_NOW_WORDS = (
    "OOM",
    "READONLY",
    "NOREPLICAS",
    "BUSY",
    "MISCONF",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "TRYAGAIN",
    "LOADING",
)

#: Seconds for which it is believed how the server's clock runs.
_CLOCK_HOLDS_S = 60.0


class Access:
    """One pool's ledger on one Redis or Valkey server.

    ``client`` must be the ledger's own (``decode_responses=False``), made after any fork. ``clock`` gives seconds since
    the epoch for simulations; without it the server's clock is used. ``announcer`` is what the client's new connections
    ask first.
    """

    def __init__(
        self,
        client: redis.Redis,
        pool: str = "default",
        clock: Callable[[], float] | None = None,
        options: Options | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self.client = client
        self.pool = pool
        self.options = options or Options()
        self._clock = clock
        self._announcer = announcer
        self._prefix = keys.prefix(pool)
        self._common = self.options.common()
        self._tried = False

    @property
    def url(self) -> str:
        """Where the ledger is, without its password, for messages."""
        return servers.describe(self.client)

    @property
    def run_id(self) -> str:
        """Which run of the server this client last connected to; empty before the first connection."""
        return self._announcer.run_id if self._announcer else ""

    def server_time(self) -> float:
        """What the server's clock says now; asks it about once a minute. Raises :class:`LedgerUnavailable`."""
        if self._clock is not None:
            return self._clock()
        if self._met is None or time.monotonic() - self._met_at > _CLOCK_HOLDS_S:
            seconds, micros = self._guard(self.client.time)
            self._meet(seconds + micros / 1e6)
        known = self._server_clock()
        assert known is not None
        return known

    #: The server's clock less this process's monotonic one, as last heard; ``None`` before.
    _met: float | None = None
    _met_at = 0.0

    def _meet(self, server_s: float) -> None:
        """The server has just told its time."""
        self._met_at = time.monotonic()
        self._met = server_s - self._met_at

    def _server_clock(self) -> float | None:
        """What the server's clock says now, as far as this client knows; not for simulated clocks."""
        return None if self._met is None or self._clock is not None else self._met + time.monotonic()

    def _run(self, name: str, *args: Any) -> Any:
        now = "" if self._clock is None else round(self._clock() * 1000)
        if not self.options.strategies:
            return self._guard(scripts.run, self.client, name, self._prefix, now, *self._common, *args)
        if not self._tried and scripts.places(name):
            self.try_strategies()
        script = partial(scripts.run, registered=self.options.strategies)
        return self._guard(script, self.client, name, self._prefix, now, *self._common, *args)

    def try_strategies(self) -> None:
        """Let the server compile and try each strategy that a user registered; else that is done at its first use.

        Raises :class:`~celery_allocator.errors.SettingsError` for one that cannot be used.
        """
        for fragment in self.options.strategies:
            self._guard(try_strategy, self.client, self._prefix, fragment, "", *self._common)
        self._tried = True

    def _guard(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise LedgerUnavailable(f"the ledger at {self.url} cannot be reached: {error}") from error
        except RedisError as error:
            if isinstance(error, _FOR_NOW) or str(error).startswith(_FOR_NOW_WORDS):
                if isinstance(error, ReadOnlyError):  # this connection leads to what is a replica now
                    self.client.connection_pool.disconnect(inuse_connections=False)
                raise LedgerUnavailable(f"the ledger at {self.url} cannot serve now: {error}") from error
            # No permission, an unknown command, …: nothing that passes.
            raise LedgerError(f"the ledger at {self.url} refuses: {error}") from error
        except UnicodeEncodeError as error:  # an id from a command line whose bytes are not text
            raise LabelError("name", error.object, "is not text that can be recorded") from error


def ms(seconds: float | None) -> int | str:
    """Seconds as the scripts take them: whole milliseconds, ``""`` for ``None``."""
    return "" if seconds is None else round(seconds * 1000)
