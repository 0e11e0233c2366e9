"""The application whose tasks ``overhead.py`` runs: one module, as plain Celery or with the plugin.

``BENCH_SIDE`` (``plain`` or ``plugin``), ``BENCH_URL`` and ``BENCH_RECORDS`` come from the benchmark. Every task writes
its start and its end, taken inside the task, to a file of its side: 16 bytes, one ``write``.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from celery import Celery

from celery_allocator import install

RECORD = struct.Struct("=dd")
#: What each task asks for of the simulated GPUs; plain Celery ignores it.
RESOURCES = {"gpu_memory_mb": 1024, "cpu_cores": 1, "ram_mb": 16}


def make_app(side: str, url: str, records: str, **conf: object) -> Celery:
    """The application of one side. ``records``: folder for the tasks' times."""
    app = Celery(side, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_default_queue=f"bench.{side}",
        control_exchange=f"bench.{side}",
        # The default, but said: results are stored, on both sides.
        task_ignore_result=False,
        broker_connection_retry_on_startup=True,
        worker_send_task_events=False,
        **conf,
    )
    if side != "plain":
        install(app)
    path = Path(records) / side

    @app.task(name="bench.noop", shared=False, resources=RESOURCES)
    def noop() -> None:
        _record(path, time.time())

    @app.task(name="bench.hold", shared=False, resources=RESOURCES)
    def hold(seconds: float) -> None:
        began = time.time()
        time.sleep(seconds)
        _record(path, began)

    return app


def read_records(path: Path) -> list[tuple[float, float]]:
    """Start and end of every task recorded so far, seconds since the epoch, in the order of their ends."""
    return list(RECORD.iter_unpack(path.read_bytes())) if path.exists() else []


_files: dict[tuple[int, Path], int] = {}


def _record(path: Path, began: float) -> None:
    key = (os.getpid(), path)
    if key not in _files:
        _files[key] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(_files[key], RECORD.pack(began, time.time()))


if "BENCH_SIDE" in os.environ:
    app = make_app(os.environ["BENCH_SIDE"], os.environ["BENCH_URL"], os.environ["BENCH_RECORDS"])
