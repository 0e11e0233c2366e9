"""Workers that leave, die, stall and come back, with work running, granted and waiting."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fault.batch import Batch
from tests.fault.history import Run
from tests.fault.registry import SUCCEEDS, VISIBLE, Layout, fault
from tests.fault.stale import await_end, freed, lapse

BROKERS = ("same", "redis", "rabbitmq")
#: Seconds within which what a dead worker held is free: its lease, and two.
WORKER_S = Layout.lease_s + 2.0
#: Seconds for which a stale run may go on after its worker runs again.
STALE_S = 8.0
_SOFT = Layout(config=(("worker_soft_shutdown_timeout", 1.0),))


@dataclass(frozen=True)
class Doomed:
    """A worker with work: the runs of victims on it."""

    name: str
    device: str
    runs: list[Run]

    @property
    def task_ids(self) -> list[str]:
        return [run.task_id for run in self.runs]


@contextlib.contextmanager
def _doomed(batch: Batch, plain_ends: frozenset[str]) -> Iterator[Doomed]:
    """A worker that runs victims, repeatable and not, and is granted more which it has not begun.

    It is stopped while the body runs, for much less than its lease, and goes on (if it is there) when the body ends.
    """
    runs = [*batch.holding(3, late=True), *batch.holding(3, ends=plain_ends)]
    device = runs[0].device
    name = batch.site.worker_of(device)
    pid = batch.site.process(name).pid
    _heard(batch, name, [run.task_id for run in runs if run.device == device])
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(6):
            batch.victim("fault.nap", 0.1, ends=plain_ends)
        yield Doomed(name, device, [run for run in runs if run.device == device])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _heard(batch: Batch, name: str, task_ids: list[str]) -> None:
    """Wait until a worker's main process has heard that its children have begun these.

    A cold shutdown in the moment before lets such a task run to its end: that is Celery's own.
    """
    node = next(w.worker for w in batch.site.cluster.ledger.snapshot().workers if w.worker.startswith(f"{name}@"))
    inspect = batch.site.cluster.app.control.inspect([node], timeout=2.0, limit=1)

    def all_active() -> bool:
        active = (inspect.active() or {}).get(node) or []
        return set(task_ids) <= {task["id"] for task in active}

    batch.until(all_active, f"{name} to hear that they have begun")


def _gone(batch: Batch, name: str) -> None:
    batch.until(lambda: not batch.site.process(name).alive, f"{name} to end")


@fault("worker: warm shutdown", "worker", brokers=BROKERS)
def warm(batch: Batch) -> None:
    """SIGTERM: what runs ends well, what it was granted and has not begun runs elsewhere."""
    with _doomed(batch, SUCCEEDS) as worker:
        batch.site.process(worker.name).send(signal.SIGTERM)
    batch.let_go()
    _gone(batch, worker.name)
    for run in worker.runs:
        batch.check(len(batch.site.history.runs(run.task_id)) == 1, f"{run.task_id} was run again")


@fault("worker: cold shutdown", "worker", brokers=BROKERS, load_ends=VISIBLE, within_s=WORKER_S)
def cold(batch: Batch) -> None:
    """SIGQUIT: what runs is ended; what may be repeated runs elsewhere, the rest fails."""
    with _doomed(batch, VISIBLE) as worker:
        batch.strike(*worker.task_ids)
        batch.site.process(worker.name).send(signal.SIGQUIT)
    _gone(batch, worker.name)
    freed(batch, worker.runs)


@fault("worker: soft shutdown", "worker", brokers=BROKERS, layout=_SOFT, load_ends=VISIBLE, within_s=WORKER_S + 1)
def soft(batch: Batch) -> None:
    """SIGQUIT with ``worker_soft_shutdown_timeout``: one second of grace, then as the cold one."""
    with _doomed(batch, VISIBLE) as worker:
        batch.strike(*worker.task_ids)
        batch.site.process(worker.name).send(signal.SIGQUIT)
    _gone(batch, worker.name)
    freed(batch, worker.runs)


@fault("worker: SIGKILL", "worker", brokers=BROKERS, load_ends=VISIBLE, within_s=WORKER_S)
def sigkill(batch: Batch) -> None:
    """The whole group, as a container's end; nobody starts it again before its lease is over."""
    with _doomed(batch, VISIBLE) as worker:
        batch.strike(*worker.task_ids)
        batch.site.process(worker.name).kill()
    freed(batch, worker.runs)


@fault("worker: SIGKILL of its main process", "worker", load_ends=VISIBLE, within_s=WORKER_S)
def sigkill_main(batch: Batch) -> None:
    """Its children die with it."""
    with _doomed(batch, VISIBLE) as worker:
        batch.strike(*worker.task_ids)
        batch.site.process(worker.name).kill_main()
    freed(batch, worker.runs)


@fault("worker: restart under its name", "worker", brokers=BROKERS, load_ends=VISIBLE, within_s=WORKER_S)
def restart(batch: Batch) -> None:
    """Killed, and started again at once: its namesake need not wait for the lease."""
    with _doomed(batch, VISIBLE) as worker:
        batch.strike(*worker.task_ids)
        batch.site.process(worker.name).kill()
    batch.site.restart(worker.name)
    freed(batch, worker.runs)


@fault("worker: crash loop", "worker", load_ends=VISIBLE, within_s=WORKER_S)
def crash_loop(batch: Batch) -> None:
    """Killed again whenever it is back; its tasks are repeated elsewhere, or fail once they lost enough workers."""
    with _doomed(batch, VISIBLE) as worker:
        batch.strike(*worker.task_ids)
        batch.site.process(worker.name).kill()
    for _ in range(2):
        batch.site.restart(worker.name)
        batch.site.process(worker.name).kill()
    freed(batch, worker.runs)


def _stall(batch: Batch, whole_group: bool) -> None:
    runs = [*batch.holding(3, late=True, ends=VISIBLE), *batch.holding(3, ends=VISIBLE)]
    device = runs[0].device
    process = batch.site.process(batch.site.worker_of(device))
    group = batch.site.group(batch.site.worker_of(device))
    pids = group if whole_group else group[:1]
    stale = [run for run in batch.site.history.runs() if run.device == device and run.end is None]
    mine = [run for run in runs if run.device == device]
    batch.strike(*(run.task_id for run in mine))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        freed(batch, mine)
        lapse(batch, stale)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    await_end(batch, stale, STALE_S)
    said = process.output()
    for run in stale:
        if run.killed and run.lapsed is not None:
            batch.check(f"(process {run.pid} killed): the lease" in said, f"{run.task_id} was stopped without a word")


@fault("worker: stopped past its lease", "worker", load_ends=VISIBLE, within_s=WORKER_S)
def stopped(batch: Batch) -> None:
    """The whole group (a paused container or machine): stale when it goes on, and its children are ended."""
    _stall(batch, whole_group=True)


@fault("worker: main process stopped past its lease", "worker", load_ends=VISIBLE, within_s=WORKER_S)
def stopped_main(batch: Batch) -> None:
    """Its children go on meanwhile: they cannot know."""
    _stall(batch, whole_group=False)
