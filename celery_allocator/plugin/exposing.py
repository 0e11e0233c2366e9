"""Metrics from a worker (setting ``allocator_metrics_port``): threads of its main process, from start to shutdown."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from celery_allocator.errors import AllocatorError
from celery_allocator.metrics import load
from celery_allocator.plugin.session import session

if TYPE_CHECKING:
    from celery_allocator.metrics.exporter import Exporter

logger = logging.getLogger(__name__)

#: Seconds a leaving worker waits for what is being answered.
_FAREWELL_S = 1.0


class MetricsStep(bootsteps.StartStopStep):
    """Consumer step: serves metrics, or stands by while another worker of the host does."""

    name = "AllocatorMetrics"
    # The step with which the worker comes and goes requires this one, so that this one ends after it: nothing here may
    # hold up leaving the ledger.
    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._exporter: Exporter | None = None
        self._stop = threading.Event()

    def include_if(self, parent: Any) -> bool:
        try:
            return session(parent.app).settings.metrics_port > 0
        except AllocatorError:  # wrong settings are told of by what needs them
            return False

    def start(self, parent: Any) -> None:
        """Begin; a consumer that starts again finds it at work."""
        if self._exporter is not None:
            return
        current = session(parent.app)
        settings = current.settings
        try:
            serve = load("serve_when_free")
            exporter: Exporter = load("Exporter")(
                lambda: current.connect(settings), settings, settings.metrics_host, settings.metrics_port
            )
        except AllocatorError as error:
            logger.error("no metrics from here: %s", error)  # noqa: TRY400
            return
        self._exporter = exporter
        threading.Thread(target=serve, args=(exporter, self._stop), name="allocator-metrics-start", daemon=True).start()

    def stop(self, parent: Any) -> None:
        """The consumer starts again, or ends: until it is known which, metrics are served."""

    def shutdown(self, parent: Any) -> None:
        """Serve no more."""
        self._stop.set()
        if self._exporter is not None:
            self._exporter.stop(_FAREWELL_S)
