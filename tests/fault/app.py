"""The application of the fault harness: every run says in a file when it began, what it held, and when it ended.

A file and not a server: any server may be what fails. ``FAULT_RECORDS`` names it; a flag that a task waits for is a
file too. A run that does not end by itself (its process is killed, or told to end) writes no end: the harness watches
its process, since what it held is in use until that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery
from celery.app.task import Task

from celery_allocator import current_allocation
from celery_allocator.ledger import keys
from celery_allocator.plugin import deliveries, running
from tests.fault import deaths
from tests.support import allocator_app

RECORDS = "FAULT_RECORDS"
#: The schema that this process speaks, where it shall be of another version.
SCHEMA = "FAULT_SCHEMA"
#: Files of these names (and a number) beside the records: see ``_die_before_publishing``.
DIE_IN_CHILD, DIE_IN_MAIN = "die-in-child", "die-in-main"
#: Seconds that a task which waits for a flag waits at most.
PATIENCE_S = 90.0
GPU = {"gpu_memory_mb": 1024, "cpu_cores": 1, "ram_mb": 256}
LATE = {"acks_late": True, "reject_on_worker_lost": True}


def write(**line: Any) -> None:
    """Append one line; a single write of this size is not torn apart by others."""
    descriptor = os.open(os.environ[RECORDS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def recorded(task: Task) -> Iterator[None]:
    """Around the body of a task: its start, and its end unless the process is ending."""
    held = current_allocation()
    run = uuid.uuid4().hex
    claim = {} if held is None else {
        "allocation_id": held.allocation_id,
        "token": held.token,
        "node": held.node,
        "device": held.device_id,
        "gpu_memory_mb": held.gpu_memory_mb,
        "ram_mb": held.ram_mb,
        "cores": list(held.cpu_cores),
    }  # fmt: skip
    write(run=run, task_id=task.request.id, task=task.name, pid=os.getpid(), start=time.monotonic(), **claim)
    try:
        yield
    except Exception:
        write(run=run, end=time.monotonic())
        raise
    write(run=run, end=time.monotonic())


def wait_for(flag: str) -> str:
    """Wait until the harness makes a file of that name."""
    deadline = time.monotonic() + PATIENCE_S
    while not Path(flag).exists():
        assert time.monotonic() < deadline, f"nobody made {flag}"
        time.sleep(0.02)
    return flag


def make_app(**config: Any) -> Celery:
    """The zoo of the other suites with the tasks of this one."""
    app = allocator_app.make_app(**config)
    for suffix, options in (("", {}), ("_late", LATE)):
        _working(app, suffix, options)
        _dying(app, suffix, options)
    return app


def _working(app: Celery, suffix: str, options: dict[str, Any]) -> None:
    @app.task(name=f"fault.nap{suffix}", shared=False, bind=True, resources=GPU, **options)
    def nap(self: Task, seconds: float) -> float:
        """A short task that ends well."""
        with recorded(self):
            time.sleep(seconds)
            return seconds

    @app.task(name=f"fault.hold{suffix}", shared=False, bind=True, resources=GPU, **options)
    def hold(self: Task, flag: str) -> str:
        """Runs until the harness makes the file ``flag``."""
        with recorded(self):
            return wait_for(flag)


def _dying(app: Celery, suffix: str, options: dict[str, Any]) -> None:
    @app.task(name=f"fault.die{suffix}", shared=False, bind=True, resources=GPU, **options)
    def die(self: Task, how: str, *args: Any) -> Any:
        """Ends as ``how`` says (a function of ``tests.fault.deaths``)."""
        with recorded(self):
            return getattr(deaths, how)(self, *args)


def _die_before_publishing(module: Any, flag: str) -> None:
    """Have a process of this worker killed just before it publishes the grants that its release made.

    Once for each file ``flag-*`` beside the records: whoever removes one dies.
    """
    publish_grants = module.publish_grants

    def publish(app: Celery, grants: Any) -> None:
        grants = tuple(grants)
        if grants:
            for file in Path(os.environ[RECORDS]).parent.glob(f"{flag}-*"):
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
        publish_grants(app, grants)

    module.publish_grants = publish


if SCHEMA in os.environ:
    keys.SCHEMA = int(os.environ[SCHEMA])
app = make_app()
if RECORDS in os.environ:
    _die_before_publishing(running, DIE_IN_CHILD)
    _die_before_publishing(deliveries, DIE_IN_MAIN)
