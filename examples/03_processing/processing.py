"""A Celery project that hears notes in recordings: CPU work that takes a GPU only where the call asks for one.

``celery -A processing allocator workers`` runs its workers, ``python run.py`` gives them work.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from celery import Celery
from spectrum import analyse

from celery_allocator import current_allocation, install

app = Celery("processing", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
install(app)


@app.task(resources={"cpu_cores": 2, "ram_mb": 1024})
def hear(recording: str, picture: str) -> dict[str, Any]:
    """Find the notes of the WAV file ``recording``; writes them (JSON) and a spectrogram (PNG)."""
    held = current_allocation()  # None when the task is called as a function
    started = time.time()
    heard = analyse(Path(recording), Path(picture), gpu=held is not None and held.gpu_id is not None)
    if held is not None:
        heard["held"] = {
            "node": held.node,
            "gpu_id": held.gpu_id,
            "gpu_memory_mb": held.gpu_memory_mb,
            "cpu_cores": list(held.cpu_cores),
            "ram_mb": held.ram_mb,
            "token": held.token,
            "from": started,
            "to": time.time(),
        }
    Path(picture).with_suffix(".json").write_text(json.dumps(heard, indent=1) + "\n")
    return heard
