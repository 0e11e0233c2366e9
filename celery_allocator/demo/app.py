"""The demo's Celery app. Broker, result backend and ledger come from the environment that the demo sets up."""

from __future__ import annotations

from celery import Celery

from celery_allocator.plugin import install

app = Celery("celery_allocator.demo", include=["celery_allocator.demo.tasks"])
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, result_expires=3600)
install(app)
