"""The recorder in a worker (setting ``allocator_recorder``): a thread of its main process, from start to shutdown.

Safety is not its business: whatever becomes of it, the worker works on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from celery_allocator.errors import AllocatorError
from celery_allocator.history import load
from celery_allocator.plugin.session import session

if TYPE_CHECKING:
    from celery_allocator.history.recorder import RecorderThread

logger = logging.getLogger(__name__)

#: Seconds a leaving worker waits for the batch at hand.
_FAREWELL_S = 5.0


class RecorderStep(bootsteps.StartStopStep):
    """Consumer step: records the history, or stands by while another worker does."""

    name = "AllocatorRecorder"
    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._thread: RecorderThread | None = None

    def include_if(self, parent: Any) -> bool:
        try:
            return session(parent.app).settings.recorder
        except AllocatorError:  # wrong settings are told of by what needs them
            return False

    def start(self, parent: Any) -> None:
        """Begin; a consumer that starts again finds it at work."""
        if self._thread is not None and self._thread.alive:
            return
        current = session(parent.app)
        try:
            recorder = load("Recorder")(lambda: current.connect(current.settings), current.settings)
            self._thread = load("RecorderThread")(recorder)
        except AllocatorError as error:
            logger.error("the history is not recorded from here: %s", error)  # noqa: TRY400
        else:
            self._thread.start()
            logger.info("recording the history of pool %s, or standing by", current.settings.pool)

    def stop(self, parent: Any) -> None:
        """The consumer starts again, or ends: until it is known which, recording goes on."""

    def shutdown(self, parent: Any) -> None:
        """End after the batch at hand."""
        if self._thread is not None and not self._thread.stop(_FAREWELL_S):
            logger.warning("leaving before the recorder has ended; another takes over where it stood")

    def info(self, parent: Any) -> dict[str, Any]:
        """What ``celery inspect stats`` shows."""
        if self._thread is None:
            return {}
        progress = self._thread.recorder.progress
        return {"allocator_recorder": {"state": progress.state, "lag": progress.lag, "recorded": progress.recorded}}
