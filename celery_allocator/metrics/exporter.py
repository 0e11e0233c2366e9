"""Serves ``/metrics`` and ``/healthz`` over HTTP, from threads of this process."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from celery_allocator.ledger import Ledger
from celery_allocator.metrics.collector import PoolCollector
from celery_allocator.metrics.following import Follower
from celery_allocator.metrics.looking import Lookout
from celery_allocator.metrics.recorded import RecordedWatch
from celery_allocator.metrics.tallies import Tallies
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds after which a client that does not say what it wants is hung up on.
_CLIENT_S = 15.0
#: Seconds between tries to get the port, while somebody else has it.
_PORT_S = 5.0


class Exporter:
    """The metrics of one pool. ``connect`` gives ledger clients, each for one thread; it is called in those threads.

    Never part of :data:`prometheus_client.REGISTRY`: others serve that one, Flower for instance on its event loop.
    """

    def __init__(self, connect: Callable[[], Ledger], settings: Settings, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.tallies = Tallies()
        self.lookout = Lookout(connect, self.tallies)
        self.follower = Follower(connect, self.tallies)
        self._recorded = RecordedWatch(settings, self.tallies, self._newest)
        self.registry = CollectorRegistry()
        self.registry.register(
            PoolCollector(settings.pool, self.tallies, self.lookout.fresh, lambda: self._recorded.latest)
        )
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where the metrics are, once it serves."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def start(self) -> None:
        """Serve, in threads of this process. Raises ``OSError`` where the port cannot be had.

        Port 0 is any that is free; ``port`` says which.
        """
        self._server = server = _Server((self.host, self.port), self._answer)
        self.port = server.server_port
        self._begin("follower", lambda: self.follower.run(self._stop))
        self._begin("lookout", lambda: self.lookout.run(self._stop))
        self._begin("recorded", lambda: self._recorded.run(self._stop))
        self._begin("http", lambda: server.serve_forever(0.2))

    def stop(self, timeout_s: float = 2.0) -> None:
        """Serve no more. Waits at most ``timeout_s`` seconds for what is being answered and read."""
        self._stop.set()
        self.lookout.wake()
        if self._server is not None:
            # Its own loop answers within a fifth of a second; a shutdown of one that never ran would wait for good.
            threading.Thread(target=self._server.shutdown, daemon=True).start()
        share = timeout_s / max(1, len(self._threads))
        for thread in self._threads:
            thread.join(share)
        if self._server is not None:
            self._server.server_close()

    @property
    def healthy(self) -> bool:
        """Whether all of its threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def _newest(self) -> str | None:
        # The latest will do: to ask for a fresh one would hurry looks that a large pool makes seldom.
        seen = self.lookout.latest or self.lookout.fresh()
        return None if seen is None else seen.position

    def _begin(self, name: str, run: Callable[[], Any]) -> None:
        thread = threading.Thread(target=run, name=f"allocator-metrics-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return make_wsgi_app(self.registry)(environ, start_response)  # type: ignore[no-any-return]
        status, body = "404 Not Found", b"nothing is here: metrics are at /metrics\n"
        if path == "/healthz":
            status, body = ("200 OK", b"ok\n") if self.healthy else ("503 Service Unavailable", b"a thread has ended\n")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]


def serve_when_free(exporter: Exporter, stop: threading.Event) -> None:
    """Start an exporter as soon as its port can be had: of several on one host one serves, and the others stand by."""
    complaint = ""
    while not stop.is_set():
        try:
            exporter.start()
        except OSError as error:
            if str(error) != complaint:
                complaint = str(error)
                logger.info("metrics: port %s of %s: %s; standing by", exporter.port, exporter.host, error)
            stop.wait(_PORT_S)
        else:
            logger.info("serving metrics at %s", exporter.url)
            return


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_S

    def log_message(self, *_: Any) -> None:
        """A scrape every few seconds is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    #: A client that is slow does not hold up whoever stops the server.
    block_on_close = False

    def __init__(self, address: tuple[str, int], answer: Callable[..., Iterable[bytes]]) -> None:
        # An address of version 6 needs a socket of that kind.
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, _Handler)
        self.set_app(answer)
        _listening.add(self)

    def server_bind(self) -> None:
        """As usual, without asking a name server what this host is called, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the base class calls it so)
        """A client that hung up, as a rule."""
        logger.debug("metrics: a request of %s failed: %s", client_address, sys.exc_info()[1])


_listening: weakref.WeakSet[_Server] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A pool's process that is forked later does not keep the port."""
    for server in list(_listening):
        server.socket.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)
