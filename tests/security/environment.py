"""A real worker and a real producer, each in a process of its own, for whatever servers a test has."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support.processes import ROOT, clean_environment
from tests.support.workers import WorkerFleet


def environment(pool: str, *, broker: str, backend: str, ledger: str = "", **conf: Any) -> dict[str, str]:
    """What worker and producer of one pool are told; ``ledger`` empty: it is where broker or results are."""
    return {
        "PYTHONPATH": str(ROOT),
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": backend,
        "ALLOCATOR_BACKEND_URL": ledger,
        "ALLOCATOR_POOL": pool,
        "ALLOCATOR_NODE": "host1",
        "ALLOCATOR_DEVICES": "sim:1x8192",
        "ALLOCATOR_CPU_CORES": "2",
        "ALLOCATOR_RAM_MB": "4096",
        "ZOO_CONFIG": json.dumps({"task_default_queue": f"plain-{pool}", **conf}),
    }


def python(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """``python -m …``"""
    argv = [sys.executable, "-m", *args]
    return subprocess.run(argv, env=clean_environment(env), capture_output=True, text=True, timeout=120, check=False)


def produce(env: dict[str, str], workers: WorkerFleet, *args: str) -> dict[str, Any]:
    """What ``tests.security.produce`` says."""
    done = python(env, "tests.security.produce", *args)
    assert done.returncode == 0, done.stderr + workers.output()
    said: dict[str, Any] = json.loads(done.stdout)
    return said
