"""What the plugin keeps per app and process: resolved settings and a ledger client of this process's own."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Protocol

from celery import Celery

from celery_allocator.ledger import Ledger, connect, resolve_url
from celery_allocator.model import Allocation
from celery_allocator.operations import Effect
from celery_allocator.plugin.duty import Duty
from celery_allocator.plugin.found import Found
from celery_allocator.plugin.sampled import Sampled
from celery_allocator.settings import Settings

_ATTRIBUTE = "_allocator_session"
_lock = threading.Lock()


class Fence(Protocol):
    """What gate and children need of the fence (see ``fence.py``)."""

    @property
    def losses(self) -> int:
        """How often this worker's lease was lost."""

    def stands(self, losses: int) -> bool:
        """Whether the lease stands, and was not lost since."""


class Keeper(Protocol):
    """What bootsteps, gate and request need of the keeper (see ``keeper.py``)."""

    queue: str

    @property
    def fence(self) -> Fence:
        """Until when the lease stands, for children."""

    @property
    def sampled(self) -> Sampled:
        """What its meter has seen of each task, for children."""

    @property
    def found(self) -> Found:
        """Where children tell what they held when a task began."""

    def register(self, slots: int, pool: Any) -> None:
        """Begin to serve the device."""

    def describe(self) -> dict[str, Any]:
        """What this worker knows of itself, as plain data."""

    def settle(self, effect: Effect) -> None:
        """Publish and write what an operator's action has brought about."""

    @property
    def outage(self) -> bool:
        """Whether the ledger did not answer when it was last asked."""

    def close(self) -> None:
        """Ask for no more grants."""

    def give_back(self, *, pool_stopped: bool) -> None:
        """What no child has been given goes back into line."""

    def leave(self) -> None:
        """Leave the ledger."""

    def info(self) -> dict[str, Any]:
        """Node, device and queue, for people."""

    def start(self, allocation_id: str, token: int, nonce: str, repeatable: bool) -> Allocation:
        """Pass the gate."""

    def holds(self, allocation: Allocation, request: Any) -> None:
        """A request was made for a task that has passed the gate."""

    def begun(self, allocation: Allocation, pid: int) -> None:
        """A child has begun a task."""

    def begun_other(self, pid: int) -> None:
        """A child has begun a task that is not the allocator's."""

    def ended(self, allocation: Allocation, outcome: str, *, error: str = "", by_child: bool = False) -> None:
        """The task ended and nothing runs any more; ``by_child``: in a child, which has released it already."""

    def totals_mb(self, allocation: Allocation) -> list[int]:
        """Memory of each of its GPUs, in MB."""

    def replace_child(self, pid: int) -> None:
        """A child that is idle is to be ended, so that a fresh one takes its place."""

    def gone(self, allocation: Allocation, outcome: str, pid: int | None, *, error: str = "") -> None:
        """The task ended violently: its resources are free when the process is gone."""


class Session:
    """Settings and ledger of one app. Nothing is read or connected before it is asked for."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._settings: Settings | None = None
        self._ledger: Ledger | None = None
        self._pid = 0
        #: The worker's keeper, in the main process of a worker that serves a device.
        self.keeper: Keeper | None = None
        #: The duties that this worker takes part in.
        self.duties: Sequence[Duty] = ()

    @property
    def settings(self) -> Settings:
        """The allocator's settings, from the environment and ``app.conf``."""
        if self._settings is None:
            self._settings = Settings.load(conf=self._app.conf)
        return self._settings

    @property
    def ledger(self) -> Ledger:
        """The ledger; a fork gets a client of its own."""
        pid = os.getpid()
        if self._ledger is None or self._pid != pid:
            with _lock:
                if self._ledger is None or self._pid != pid:
                    self._ledger = self.connect(self.settings)
                    self._pid = pid
        return self._ledger

    @property
    def is_embedded(self) -> bool:
        """Whether nothing is configured, so that the ledger is this host's embedded server."""
        return resolve_url(self.settings, *self._urls()) is None

    def connect(self, settings: Settings) -> Ledger:
        """A new client of the ledger that these settings and the app's broker and result backend give."""
        return connect(settings, *self._urls(), celery_options=self._celery_options)

    def _urls(self) -> tuple[str | None, str | None]:
        conf: Any = self._app.conf
        broker = conf.broker_write_url or conf.broker_url
        if isinstance(broker, (list, tuple)):
            sentinels = [url for url in broker if url.startswith("sentinel:")]
            broker = ";".join(sentinels) if sentinels else broker[0] if broker else None
        backend = conf.result_backend
        # Celery takes several brokers in one string, parted by semicolons. The first one is the one in use, but several
        # Sentinels are one broker.
        if isinstance(broker, str) and not broker.startswith("sentinel:"):
            broker = broker.split(";")[0]
        return broker, backend if isinstance(backend, str) else None

    def _celery_options(self, url: str) -> tuple[dict[str, Any], Any]:
        """The transport's options and ``use_ssl`` that the app has for the server behind ``url``."""
        conf: Any = self._app.conf
        broker, backend = self._urls()
        if url == backend and url != broker:
            return dict(conf.result_backend_transport_options or {}), conf.redis_backend_use_ssl
        return dict(conf.broker_transport_options or {}), conf.broker_use_ssl if url == broker else None


def session(app: Celery) -> Session:
    """The session of an app, made on first use. An app that was pickled into a child makes its own there."""
    found = vars(app).get(_ATTRIBUTE)
    if found is None:
        with _lock:
            found = vars(app).setdefault(_ATTRIBUTE, Session(app))
    assert isinstance(found, Session)
    return found
