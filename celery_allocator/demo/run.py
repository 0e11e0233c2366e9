"""The demo from its first file to its summary."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from celery.states import READY_STATES, SUCCESS

from celery_allocator.demo import tasks
from celery_allocator.demo.app import app
from celery_allocator.demo.checks import check_capacity, check_outputs, read_records
from celery_allocator.demo.jobs import Folders, Job, prepare
from celery_allocator.demo.live import Display, display
from celery_allocator.demo.session import DemoError, Interrupts, Session, environment
from celery_allocator.demo.summary import Summary, summarise
from celery_allocator.demo.view import Watcher
from celery_allocator.errors import InventoryError
from celery_allocator.inventory import discover
from celery_allocator.ledger import Ledger, connect
from celery_allocator.model import NodeInventory
from celery_allocator.settings import Settings

#: What a host without a GPU gets, and how many cores a smaller host gets, so that tasks of several cores can share it.
SIMULATED = "sim:2x8192"
SIMULATED_CORES = 8
GPU_SLOTS = 4
CPU_SLOTS = 3
#: In the folder of an earlier demo, which the next one may empty.
MARKER = ".celery-allocator-demo"
WORKERS_DEADLINE_S = 90.0
LOOK_EVERY_S = 0.25


def run_demo(
    *,
    tasks_count: int = 60,
    devices: str = "auto",
    output: Path = Path("demo-output"),
    seed: int = 1,
    timeout_s: float = 300.0,
    stream: TextIO | None = None,
) -> Summary:
    """Run the demo and return its summary. ``stream`` is where progress is shown (stdout if none is given).

    Everything started is stopped again, also when a signal ends it (:class:`Interrupted`); call it from the main
    thread, once per process. Raises :class:`DemoError` when it cannot go on.
    """
    started = time.monotonic()
    interrupts = Interrupts()
    folders = _clear(output)
    with (
        interrupts.handled(),
        display(stream) as shown,
        Session(interrupts) as session,
        environment(_environment(devices, session)),
    ):

        def say(text: str) -> None:
            session.check()
            shown.say(text)

        settings = Settings.load()
        here = discover(settings)
        say(f"{_describe(here)}; server at {session.server.url}")
        session.start_workers("celery_allocator.demo.app", folders.logs / "workers.log")
        # The workers take their time to start: meanwhile, the input.
        memory_mb = min(device.memory_mb for device in here.devices)
        jobs = prepare(folders, tasks_count, seed, memory_mb, say)
        ledger = connect(settings)
        _await_workers(ledger, len(here.devices) + 1, session, shown)
        say(f"submitting {len(jobs)} tasks")
        task_ids = _submit(jobs)
        watcher = Watcher(ledger, {task_id: name for name, task_id in task_ids.items()}, len(jobs))
        failures = _watch(task_ids, watcher, session, shown, timeout_s)
        _await_empty(ledger)
        cluster = ledger.snapshot()
        say("checking the outputs")
        records, wrong = read_records(jobs)
        wrong = [*failures, *wrong, *check_outputs(jobs), *check_capacity(records, cluster), *_leftovers(ledger)]
        seconds = time.monotonic() - started
        summary = summarise(records, watcher, cluster, seconds, str(folders.outputs), wrong)
        say("stopping the workers and the server")
    return summary


def _clear(output: Path) -> Folders:
    """The demo's folders, empty. A folder that is neither new, empty nor an earlier demo's is left alone."""
    folders = Folders(output.resolve())
    root = folders.root
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not (root / MARKER).exists())):
        raise DemoError(f"{root} exists and is not an earlier demo's: choose another folder with --output")
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    for folder in (folders.inputs, folders.outputs, folders.records, folders.logs):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    return folders


def _environment(devices: str, session: Session) -> Mapping[str, str]:
    """The configuration of the demo's app, here and in its workers."""
    if devices == "auto" and not _has_gpu():
        devices = SIMULATED
    values = {
        "CELERY_BROKER_URL": session.server.celery_url,
        "CELERY_RESULT_BACKEND": session.server.celery_url,
        "ALLOCATOR_BACKEND_URL": session.server.url,
        "ALLOCATOR_POOL": "demo",
        "ALLOCATOR_DEVICES": devices,
        "ALLOCATOR_WORKER_CONCURRENCY": str(GPU_SLOTS),
        "ALLOCATOR_WORKER_CPU_CONCURRENCY": str(CPU_SLOTS),
        # Several tasks share the host: more than one thread of arithmetic each would only get in each other's way.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if (os.cpu_count() or 1) < SIMULATED_CORES:
        values["ALLOCATOR_CPU_CORES"] = str(SIMULATED_CORES)
    return values


def _has_gpu() -> bool:
    try:
        return bool(discover(Settings(devices="auto")).devices)
    except InventoryError:
        return False


def _describe(here: NodeInventory) -> str:
    if not here.devices:
        raise DemoError(f"no GPU to show: try --devices {SIMULATED}")
    first = here.devices[0]
    return (
        f"{len(here.devices)} x {first.model} of {first.memory_mb} MB, "
        f"{len(here.cpu_cores)} cores{' (simulated)' if len(here.cpu_cores) > (os.cpu_count() or 1) else ''}"
    )


def _await_workers(ledger: Ledger, count: int, session: Session, shown: Display) -> None:
    shown.say(f"waiting for {count} workers")
    deadline = time.monotonic() + WORKERS_DEADLINE_S
    while len(ledger.snapshot().workers) < count:
        session.check()
        if time.monotonic() > deadline:
            found = [worker.worker for worker in ledger.snapshot().workers]
            raise DemoError(f"only {len(found)} of {count} workers came up within {WORKERS_DEADLINE_S:.0f} s: {found}")
        time.sleep(0.1)


def _submit(jobs: Sequence[Job]) -> dict[str, str]:
    """Submit the jobs; returns the task id of each by the job's name."""
    functions = {"inference": tasks.inference, "rendering": tasks.rendering, "processing": tasks.processing}
    # Ids and no AsyncResults: those subscribe to the server, and would look for it after the demo has stopped it.
    return {
        job.name: functions[job.kind].apply_async(job.arguments, resources=job.resources or None).id for job in jobs
    }


def _watch(
    task_ids: Mapping[str, str], watcher: Watcher, session: Session, shown: Display, timeout_s: float
) -> list[str]:
    """Show the demo until every task has ended; returns the failures."""
    unfinished = dict(task_ids)
    failures: list[str] = []
    deadline = time.monotonic() + timeout_s
    while unfinished:
        for name, task_id in list(unfinished.items()):
            meta = app.backend.get_task_meta(task_id)
            if meta["status"] in READY_STATES:
                del unfinished[name]
                if meta["status"] != SUCCESS:
                    failures.append(f"{name} ended as {meta['status']}: {meta['result']!r}")
        shown.show(watcher.look(len(task_ids) - len(unfinished), len(failures)))
        session.check()
        if time.monotonic() > deadline:
            return [*failures, f"not done within {timeout_s:.0f} s: {', '.join(unfinished)}"]
        if unfinished:
            time.sleep(LOOK_EVERY_S)
    return failures


def _await_empty(ledger: Ledger, patience_s: float = 5.0) -> None:
    """A result is written a moment before its task's claim is released."""
    deadline = time.monotonic() + patience_s
    while (ledger.held() or ledger.queue()) and time.monotonic() < deadline:
        time.sleep(0.05)


def _leftovers(ledger: Ledger) -> list[str]:
    left = [f"still held: {a.task_name} {a.task_id}" for a in ledger.held()]
    left += [f"still waiting: {a.task_name} {a.task_id}" for a in ledger.queue()]
    return left + [f"the ledger is wrong: {difference}" for difference in ledger.verify()]
