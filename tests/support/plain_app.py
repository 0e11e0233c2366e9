"""A Celery application without the plugin: what the nodes themselves are tried with.

An application module for the nodes has ``make_app(**config)``, which the producer in the test calls, and ``app``, which
``celery -A`` finds and which reads ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``. Its tasks are not ``shared``:
Celery would add shared ones to every other application of the test process too.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery


def make_app(**config: Any) -> Celery:
    """A fresh application with the tasks ``plain.add``, ``plain.sleep`` and ``plain.environment``."""
    app = Celery("plain", set_as_current=False, include=["pytest_celery.vendors.worker.tasks"])
    app.conf.update(config)

    @app.task(name="plain.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="plain.sleep", shared=False, acks_late=True, reject_on_worker_lost=True)
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @app.task(name="plain.environment", shared=False)
    def environment(name: str) -> str | None:
        return os.environ.get(name)

    return app


app = make_app()
