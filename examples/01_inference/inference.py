"""A Celery project that reads pages of digits with a trained network, each on a GPU with room for it.

``celery -A inference allocator workers`` runs its workers, ``python run.py`` gives them work.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from celery import Celery
from digits import Network, read_page

from celery_allocator import current_allocation, install

app = Celery("inference", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
install(app)


@app.task(resources={"gpu_memory_mb": 2048, "cpu_cores": 1, "ram_mb": 512})
def read(page: str, weights: str, answer: str) -> dict[str, Any]:
    """Read the PNG file ``page`` and write labels and probabilities to the JSON file ``answer``."""
    held = current_allocation()  # None when the task is called as a function
    started = time.time()
    reading = read_page(Path(page), Network.load(Path(weights)), gpu=held is not None and held.gpu_id is not None)
    if held is not None:
        reading["held"] = {
            "node": held.node,
            "gpu_id": held.gpu_id,
            "gpu_memory_mb": held.gpu_memory_mb,
            "cpu_cores": list(held.cpu_cores),
            "ram_mb": held.ram_mb,
            "token": held.token,
            "from": started,
            "to": time.time(),
        }
    Path(answer).write_text(json.dumps(reading, indent=1) + "\n")
    return {"answer": answer, "digits": len(reading["labels"]), "computed_on": reading["computed_on"]}
