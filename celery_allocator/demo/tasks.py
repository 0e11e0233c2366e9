"""The demo's three tasks. Each does its work and leaves a record of what it held while it did."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery_allocator.demo.app import app
from celery_allocator.demo.work import digits, raytrace, spectrum
from celery_allocator.plugin import current_allocation


@app.task(name="demo.inference", resources={"gpu_memory_mb": 2048, "cpu_cores": 1, "ram_mb": 256})
def inference(page: str, weights: str, answer: str, record: str) -> str:
    """Read a page of digits; writes labels and probabilities to the JSON file ``answer``."""
    with recorded(record) as gpu:
        reading = digits.read_page(Path(page), digits.Network.load(Path(weights)), gpu=gpu)
        Path(answer).write_text(json.dumps(reading) + "\n")
    return answer


@app.task(name="demo.rendering", resources={"gpu_memory_mb": 4096, "cpu_cores": 2, "ram_mb": 256})
def rendering(scene: str, picture: str, record: str) -> str:
    """Render a scene file to the PNG file ``picture``."""
    with recorded(record) as gpu:
        raytrace.render(Path(scene), Path(picture), gpu=gpu)
    return picture


@app.task(name="demo.processing", resources={"cpu_cores": 2, "ram_mb": 256})
def processing(recording: str, answer: str, record: str) -> str:
    """Hear the notes of a recording; writes them to the JSON file ``answer`` and a spectrogram beside it."""
    with recorded(record) as gpu:
        heard = spectrum.analyse(Path(recording), Path(answer).with_suffix(".png"), gpu=gpu)
        Path(answer).write_text(json.dumps(heard) + "\n")
    return answer


@contextmanager
def recorded(record: str) -> Iterator[bool]:
    """Write what the task held, and from when to when, to a JSON file; yields whether it holds a GPU.

    The file's name ends in the grant's token, so that a task that ran twice would leave two.
    """
    held = current_allocation()
    if held is None:
        raise RuntimeError("the task runs without an allocation: the allocator is not installed in this worker")
    started = time.time()
    yield held.gpu_id is not None
    facts: dict[str, Any] = {
        "task_id": held.task_id,
        "task_name": held.task_name,
        "node": held.node,
        "device": held.device_id,
        "gpu_id": held.gpu_id,
        "gpu_memory_mb": held.gpu_memory_mb,
        "cpu_cores": list(held.cpu_cores),
        "ram_mb": held.ram_mb,
        "token": held.token,
        "worker": held.worker,
        "pid": os.getpid(),
        "submitted_at": held.submitted_at,
        "granted_at": held.granted_at,
        "from": started,
        "to": time.time(),
    }
    Path(f"{record}.{held.token}.json").write_text(json.dumps(facts, indent=1) + "\n")
