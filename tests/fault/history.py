"""What the tasks wrote, as runs; a run without an end is over when its process is gone, which is watched here."""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.records import Record

#: Seconds between looks at the file.
_LOOK_S = 0.02


@dataclass
class Run:
    """One start of a task. ``start`` and ``end`` are seconds of the monotonic clock; sizes in MB."""

    run: str
    task_id: str
    task: str
    pid: int
    start: float
    end: float | None = None
    #: The process was gone before the task said that it ended.
    killed: bool = False
    #: From then on the run held nothing by right: its worker's lease was over while it was stopped.
    lapsed: float | None = None
    allocation_id: str = ""
    token: int = 0
    node: str = ""
    device: str = ""
    gpu_memory_mb: int = 0
    ram_mb: int = 0
    cores: tuple[int, ...] = ()

    @property
    def grant(self) -> tuple[str, int]:
        """What it started under."""
        return self.allocation_id, self.token

    def record(self, now: float) -> Record:
        """As ``tests.support.records`` wants it; what still runs holds until ``now``."""
        end = now if self.end is None else self.end
        if self.lapsed is not None:
            end = max(self.start, min(end, self.lapsed))
        return Record(
            self.allocation_id, self.token, self.node, self.device, self.gpu_memory_mb, self.ram_mb, self.cores,
            self.start, end, self.pid,
        )  # fmt: skip


class History:
    """The runs of one site, kept up to date by a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._offset = 0
        self._runs: dict[str, Run] = {}
        self._watched: dict[int, str] = {}
        self._poll = select.poll()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fault-history", daemon=True)
        self._thread.start()

    def runs(self, task_id: str | None = None) -> list[Run]:
        """Every run so far, or those of one task, in the order of their starts."""
        with self._lock:
            self._read()
            return [run for run in self._runs.values() if task_id is None or run.task_id == task_id]

    def running(self, task_id: str) -> Run | None:
        """The run of a task that has not ended, if there is one."""
        return next((run for run in reversed(self.runs(task_id)) if run.end is None), None)

    def forget(self) -> None:
        """Drop what has ended: between batches."""
        with self._lock:
            self._read()
            self._runs = {key: run for key, run in self._runs.items() if run.end is None}

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5)
        for descriptor in self._watched:
            os.close(descriptor)

    def _watch(self) -> None:
        while not self._stop.is_set():
            ended = self._poll.poll(_LOOK_S * 1000)
            now = time.monotonic()
            with self._lock:
                # First what the tasks wrote: a run may have ended before its process did.
                self._read()
                for descriptor, _ in ended:
                    self._gone(descriptor, now)
            if ended:
                continue
            time.sleep(_LOOK_S if not self._watched else 0)

    def _read(self) -> None:
        with self.path.open("rb") as handle:
            handle.seek(self._offset)
            data = handle.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            line = json.loads(text)
            if "start" in line:
                run = Run(**{**line, "cores": tuple(line.get("cores", ()))})
                self._runs[run.run] = run
                self._follow(run)
            elif line["run"] in self._runs:
                self._runs[line["run"]].end = line["end"]

    def _follow(self, run: Run) -> None:
        try:
            descriptor = os.pidfd_open(run.pid)
        except ProcessLookupError:
            # Gone already; its end may stand further down in the file, and then replaces this one.
            run.end, run.killed = time.monotonic(), True
            return
        self._watched[descriptor] = run.run
        self._poll.register(descriptor, select.POLLIN)

    def _gone(self, descriptor: int, now: float) -> None:
        self._poll.unregister(descriptor)
        run = self._runs.get(self._watched.pop(descriptor))
        with contextlib.suppress(OSError):
            os.close(descriptor)
        if run is not None and run.end is None:
            run.end, run.killed = now, True
