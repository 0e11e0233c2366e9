"""Some rounds of one fault on a site, under load, from the first task to the verdict."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from celery_allocator.errors import AllocatorError
from tests.fault import judge
from tests.fault.history import Run
from tests.fault.judge import Sent, Verdict
from tests.fault.registry import SUCCEEDS, Fault
from tests.fault.site import Site
from tests.support.waiting import wait_until

#: Seconds within which everything that was accepted has ended, once the fault is over.
SETTLE_S = 45.0
#: Seconds between two tasks of the load, and how many of all tasks are there at most while it sends.
_PACE_S, _BUSY = 0.04, 16
#: How many times as long a task of the load stays, at most, where sending one takes longer than the pace.
_LONGEST = 5.0
#: What a victim needs unless told otherwise: it goes before the load.
VICTIM = {"gpu_memory_mb": 1024, "cpu_cores": 1, "ram_mb": 256, "priority": 100}
#: States in which a task has ended for its caller.
_READY = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class Batch:
    """What a fault works with. ``rounds``: how often it should strike now (at most its ``at_once``)."""

    def __init__(self, site: Site, fault: Fault, rounds: int) -> None:
        self.site = site
        self.fault = fault
        self.rounds = rounds
        self.sent: dict[str, Sent] = {}
        self.wrong = Verdict()
        self.random = random.Random(f"{fault.name}")
        self._stop = threading.Event()
        self._load = threading.Thread(target=self._keep_busy, name="fault-load", daemon=True)
        self._there = judge.capacity(site.cluster.ledger.snapshot())

    # --- for faults

    def victim(self, name: str, *args: Any, ends: Iterable[str] = SUCCEEDS, **options: Any) -> str:
        """Send a task that the fault is about; returns its id. ``options`` are those of ``apply_async``.

        ``ends``: the states it may end in (see ``registry``).
        """
        options.setdefault("resources", VICTIM)
        return self._send(name, args, frozenset(ends), True, options)

    def sent_elsewhere(self, task_id: str, name: str, ends: Iterable[str] = SUCCEEDS) -> None:
        """A victim that another process sends, and that counts as accepted."""
        self.sent[task_id] = Sent(task_id, name, frozenset(ends), victim=True)

    def started(self, *task_ids: str, timeout: float = 45.0) -> list[Run]:
        """Wait until these run, and return their runs."""

        def all_run() -> bool:
            return all(self.site.history.running(task_id) for task_id in task_ids)

        wait_until(all_run, timeout, lambda: f"victims to start:\n{self.site.cluster.describe()}")
        runs = [self.site.history.running(task_id) for task_id in task_ids]
        assert all(runs), "a victim ended meanwhile"
        return [run for run in runs if run]

    def holding(self, count: int, *, late: bool = False, ends: Iterable[str] = SUCCEEDS, **options: Any) -> list[Run]:
        """Start so many victims that run until :meth:`let_go`; returns their runs."""
        name = "fault.hold_late" if late else "fault.hold"
        return self.started(*(self.victim(name, self.flag, ends=ends, **options) for _ in range(count)))

    @property
    def flag(self) -> str:
        """The file that this batch's holding victims wait for."""
        return str(self.site.directory / f"flag-{id(self)}")

    def let_go(self) -> None:
        """Let holding victims end."""
        Path(self.flag).touch()

    def strike(self, *task_ids: str) -> float:
        """Say that the fault strikes these now; returns the instant on the monotonic clock."""
        now = time.monotonic()
        for task_id in task_ids:
            self.sent[task_id].struck = now
        return now

    def check(self, ok: object, text: str, kind: str = "lost") -> None:
        """Something that this fault promises beside the rest; where it does not hold it counts as ``kind``."""
        if not ok:
            getattr(self.wrong, kind).append(text)

    def until(self, predicate: Callable[[], Any], what: str, timeout: float = SETTLE_S) -> Any:
        """Wait for a condition."""
        return wait_until(predicate, timeout, what)

    def ended(self, *task_ids: str, timeout: float = SETTLE_S) -> None:
        """Wait until these have results."""
        self.until(lambda: all(self._look(self.sent[task_id]) for task_id in task_ids), "victims to end", timeout)

    def drain(self) -> None:
        """End the load, and wait until nothing of it is left: what holds goes on."""
        self._stop.set()
        self._load.join(60)
        load = [task.task_id for task in self.sent.values() if not task.victim and task.accepted]
        self.ended(*load)

    # --- for the runner

    def run(self) -> Verdict:
        """Load, fault, and the verdict once everything has settled."""
        self._load.start()
        try:
            self.until(lambda: self.site.busy >= _BUSY // 2, "the load")
            self.fault.strike(self)
        finally:
            self._stop.set()
            self._load.join(60)
            self.let_go()
        self.site.mend()
        deadline = time.monotonic() + SETTLE_S
        pending = [task for task in self.sent.values() if task.ends or not task.accepted]
        while time.monotonic() < deadline:
            pending = [task for task in pending if not self._look(task)]
            if not [task for task in pending if task.accepted] and self._idle():
                break
            time.sleep(0.1)
        time.sleep(0.12)  # the observer has seen it, too
        runs = [run for run in self.site.history.runs() if run.task_id in self.sent]
        sent = list(self.sent.values())
        verdict = Verdict(
            lost=judge.lost(sent, runs, unheard=self.fault.unheard),
            doubled=judge.doubled(runs),
            overlaps=judge.overlaps(runs, self._there, time.monotonic()),
            leaked=judge.leaked(self.site.cluster.ledger),
            recoveries=judge.recoveries(sent, runs, self.site.freed),
            tasks=sum(task.accepted for task in sent),
        )
        verdict.add(self.wrong)
        Path(self.flag).unlink(missing_ok=True)
        self.site.history.forget()
        self.site.freed.clear()
        return verdict

    def _idle(self) -> bool:
        try:
            return self.site.cluster.idle()
        except AllocatorError:
            return False

    def _look(self, task: Sent) -> bool:
        if task.state in _READY:
            return True
        try:
            meta = self.site.cluster.app.backend.get_task_meta(task.task_id)
        except Exception:  # noqa: BLE001  # the backend may be what is down
            return False
        task.state, task.reason = meta["status"], repr(meta.get("result"))[:200]
        return task.state in _READY

    def _send(self, name: str, args: tuple[Any, ...], ends: frozenset[str], victim: bool, options: Any) -> str:
        task = Sent(str(uuid.uuid4()), name, ends, victim)
        # Known before it is accepted: its runs must be found whatever happens to the sender.
        task.accepted = False
        self.sent[task.task_id] = task
        self.site.cluster.app.tasks[name].apply_async(args, task_id=task.task_id, **options)
        task.accepted = True
        return task.task_id

    def _keep_busy(self) -> None:
        took = 0.0
        while not self._stop.wait(_PACE_S):
            if self.site.busy >= _BUSY:
                continue
            pick = self.random
            need = {"gpu_memory_mb": pick.choice((0, 512, 1024, 2048, 4096)), "cpu_cores": pick.choice((1, 1, 2, 3))}
            need["ram_mb"] = pick.choice((128, 512, 1024))
            name = pick.choice(("fault.nap", "fault.nap_late"))
            # Where the machine is slow they come slowly, and there would never be many at once: so they stay longer.
            seconds = pick.uniform(0.1, 0.9) * min(_LONGEST, max(1.0, took / _PACE_S))
            began = time.monotonic()
            try:
                self._send(name, (seconds,), self.fault.load_ends, False, {"resources": need})
            except Exception:  # noqa: BLE001  # refused, which its caller saw: not accepted
                continue
            finally:
                took = time.monotonic() - began
