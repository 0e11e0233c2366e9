"""The project that docker-compose.yml runs: put yours in its place. Broker and results come from the environment."""

from __future__ import annotations

from celery import Celery

from celery_allocator import current_allocation, install

app = Celery("proj")
app.conf.update(broker_connection_retry_on_startup=True, result_backend_always_retry=True)
install(app)


@app.task(resources={"gpu_memory_mb": 2048, "cpu_cores": 1, "ram_mb": 512})
def infer(path: str) -> str:
    """Says what it was given: a GPU's memory, and cores."""
    held = current_allocation()
    return f"{path}: {held.gpu_memory_mb} MB of {held.gpu_id}, cores {list(held.cpu_cores)}"
