"""A Celery project that renders scenes, more samples per pixel taking more GPU memory.

``celery -A rendering allocator workers`` runs its workers, ``python run.py`` gives them work.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from celery import Celery
from raytrace import render

from celery_allocator import current_allocation, install

app = Celery("rendering", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
install(app)


@app.task(resources={"gpu_memory_mb": 4096, "cpu_cores": 2, "ram_mb": 1024})
def render_scene(scene: str, picture: str) -> dict[str, Any]:
    """Render the scene file ``scene`` (JSON) to the PNG file ``picture``, with a JSON file of facts beside it."""
    held = current_allocation()  # None when the task is called as a function
    started = time.time()
    facts = render(Path(scene), Path(picture), gpu=held is not None and held.gpu_id is not None)
    if held is not None:
        facts["held"] = {
            "node": held.node,
            "gpu_id": held.gpu_id,
            "gpu_memory_mb": held.gpu_memory_mb,
            "cpu_cores": list(held.cpu_cores),
            "ram_mb": held.ram_mb,
            "token": held.token,
            "from": started,
            "to": time.time(),
        }
    Path(picture).with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts
