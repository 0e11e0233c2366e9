"""An app for the command line's tests, which installs the plugin; brokers and ledger come from the environment."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from celery_allocator import install

app = Celery("proj", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL"),
    result_backend=os.environ.get("CELERY_RESULT_BACKEND"),
    allocator_ttl_s=1234.0,
)
install(app)


@app.task(name="proj.work", shared=False, resources={"cpu_cores": 1})
def work(*args: Any) -> list[Any]:
    """Give back what it got."""
    return list(args)
