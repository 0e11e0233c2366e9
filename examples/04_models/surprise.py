"""A Celery project whose tasks need a model that takes long to load: each goes to a GPU whose process has it already.

``celery -A surprise allocator workers`` runs its workers, ``python run.py`` gives them work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from celery import Celery
from ngrams import Model, load

from celery_allocator import current_allocation, install

app = Celery("surprise", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.allocator_affinity_wait_s = 30.0  # a task may wait that long for its model, though another GPU is free
app.conf.allocator_worker_concurrency = 1  # one process per GPU, which keeps one model
install(app)

#: What this process has loaded: one model.
loaded: dict[str, Model] = {}


def model_of(name: str) -> Model:
    """The model of that name; loaded in the place of another one, if it is not there."""
    if name not in loaded:
        loaded.clear()
        loaded[name] = load(name)
    return loaded[name]


@app.task(resources={"gpu_memory_mb": 6144, "cpu_cores": 1})
def measure(name: str, text: str, answer: str) -> dict[str, Any]:
    """Measure ``text`` by the model ``name`` and write what it comes to into the JSON file ``answer``."""
    found: dict[str, Any] = {"model": name, "was_loaded": name in loaded, "bits": model_of(name).bits(text)}
    held = current_allocation()  # None when the task is called as a function
    if held is not None:
        found["gpu"] = held.gpu_id
    Path(answer).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def send(name: str, text: str, answer: Path) -> Any:
    """Submit one: the model's name is its affinity."""
    return measure.apply_async((name, text, str(answer)), resources={"affinity": name})
