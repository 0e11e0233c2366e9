"""The two tables a simulation reads: the tasks of a trace, and the nodes they run on. CSV, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from celery_allocator.errors import AllocatorError, TraceError
from celery_allocator.model import FIELDS, LABELS, DeviceInventory, NodeInventory, Requirements, label

#: Columns of a trace besides the requirements: what they hold.
TRACE_COLUMNS = {
    "submit_s": "When the task is submitted, in seconds after any origin. Required.",
    "duration_s": "How long it runs once started, in seconds. Required.",
    "name": "Its task name, under which run times are learned. Default: task.",
}
#: Columns of the nodes' table.
NODE_COLUMNS = {
    "node": "Its name; with a count above 1 followed by -1, -2, …. Required.",
    "cpu_cores": "CPU cores. Required.",
    "gpus": "GPUs. Default: 0.",
    "gpu_memory_mb": "Memory of each GPU, in MB. Required where there are GPUs.",
    "ram_mb": "RAM, in MB. Default: 0, for traces that ask for none.",
    "count": "How many such nodes. Default: 1.",
}
#: Requirements that are texts.
_TEXTS = tuple(LABELS)
_REQUIREMENTS = (*FIELDS, *_TEXTS)


@dataclass(frozen=True)
class TraceTask:
    """One row of a trace. Times in seconds; ``submit_s`` counts from the trace's own origin."""

    submit_s: float
    duration_s: float
    requirements: Requirements
    name: str = "task"


def read_trace(path: Path, limit: int | None = None) -> list[TraceTask]:
    """The tasks of a trace in order of submission, of which the first ``limit``.

    Raises :class:`TraceError` with the file, the line, the column and the value.
    """
    known = (*TRACE_COLUMNS, *_REQUIREMENTS)
    tasks = [_task(row) for row in _rows(path, known, ("submit_s", "duration_s"))]
    if not tasks:
        raise TraceError(path.name, 1, "", "", "the trace holds no tasks")
    tasks.sort(key=lambda task: task.submit_s)
    return tasks[:limit]


def read_nodes(path: Path) -> list[NodeInventory]:
    """The nodes of a table, in its order. Raises :class:`TraceError` as :func:`read_trace` does."""
    nodes: list[NodeInventory] = []
    seen: set[str] = set()
    for row in _rows(path, tuple(NODE_COLUMNS), ("node", "cpu_cores")):
        for node in _nodes(row):
            if node.node in seen:
                raise row.error("node", node.node, "a node of that name stands further up")
            seen.add(node.node)
            nodes.append(node)
    if not nodes:
        raise TraceError(path.name, 1, "", "", "the table holds no nodes")
    return nodes


class _Row:
    """One line of a table."""

    def __init__(self, file: str, line: int, cells: dict[str, str]) -> None:
        self._file = file
        self._line = line
        self._cells = cells

    def error(self, column: str, value: object, rule: str) -> TraceError:
        return TraceError(self._file, self._line, column, value, rule)

    def text(self, column: str, default: str = "") -> str:
        return self._cells.get(column) or default

    def number(self, column: str, default: int = 0, minimum: int | None = 0) -> int:
        value: int = self._read(column, int, default, "must be a whole number")
        if minimum is not None and value < minimum:
            raise self.error(column, value, f"must be at least {minimum}")
        return value

    def seconds(self, column: str) -> float:
        value: float = self._read(column, float, None, "must be a number of seconds")
        if not math.isfinite(value) or value < 0 or value > 1e10:
            raise self.error(column, self._cells[column], "must be from 0 to 10,000,000,000 seconds")
        return value

    def given(self, column: str) -> bool:
        return bool(self._cells.get(column))

    def _read(self, column: str, kind: Callable[[str], Any], default: Any, rule: str) -> Any:
        written = self._cells.get(column, "")
        if not written:
            if default is None:
                raise self.error(column, written, f"{rule}, and is required")
            return default
        try:
            return kind(written)
        except ValueError:
            raise self.error(column, written, rule) from None


def _task(row: _Row) -> TraceTask:
    submit_s, duration_s = row.seconds("submit_s"), row.seconds("duration_s")
    asked: dict[str, Any] = {}
    for name in FIELDS:
        if row.given(name):
            asked[name] = row.number(name, minimum=None)
    for name in _TEXTS:
        if row.given(name):
            asked[name] = row.text(name)
    try:
        name = label("name", row.text("name", "task"))
        return TraceTask(submit_s, duration_s, Requirements(**asked), name)
    except AllocatorError as error:
        column = str(getattr(error, "key", "") or "name")
        raise row.error(column, row.text(column), str(getattr(error, "rule", error))) from error


def _nodes(row: _Row) -> Iterator[NodeInventory]:
    if not row.given("cpu_cores"):
        raise row.error("cpu_cores", "", "must be a whole number, and is required")
    cores, ram_mb = row.number("cpu_cores", minimum=1), row.number("ram_mb")
    gpus, count = row.number("gpus"), row.number("count", 1, minimum=1)
    memory_mb = row.number("gpu_memory_mb", minimum=1 if gpus and row.given("gpu_memory_mb") else 0)
    if gpus and not memory_mb:
        raise row.error("gpu_memory_mb", row.text("gpu_memory_mb"), "is required where there are GPUs")
    if cores > FIELDS["cpu_cores"].maximum:
        raise row.error("cpu_cores", cores, f"must be at most {FIELDS['cpu_cores'].maximum}")
    try:
        base = label("node", row.text("node"), without="/ ")
    except AllocatorError as error:
        raise row.error("node", row.text("node"), str(getattr(error, "rule", error))) from error
    for i in range(1, count + 1):
        name = base if count == 1 else f"{base}-{i}"
        devices = tuple(
            DeviceInventory(f"gpu_{j}", j, f"GPU-{name}-{j}", "simulated", memory_mb, simulated=True)
            for j in range(gpus)
        )
        yield NodeInventory(name, tuple(range(cores)), ram_mb, devices)


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, known: tuple[str, ...], required: tuple[str, ...]) -> Iterator[_Row]:
    """The rows of a table whose head has been checked; empty lines are skipped."""
    try:
        with _opened(path) as file:
            reader = csv.reader(file)
            head = [cell.strip() for cell in next(reader, [])]
            for column in head:
                if column not in known:
                    rule = f"is no column of this table; known are {', '.join(known)}"
                    raise TraceError(path.name, 1, column, column, rule)
                if head.count(column) > 1:
                    raise TraceError(path.name, 1, column, column, "stands more than once in the head")
            for column in required:
                if column not in head:
                    raise TraceError(path.name, 1, column, "", "is required, but not in the head")
            for cells in reader:
                if any(cells):
                    if len(cells) > len(head):
                        rule = f"the line has {len(cells)} values, the head {len(head)} columns"
                        raise TraceError(path.name, reader.line_num, "", cells[len(head)], rule)
                    values = dict(zip(head, (cell.strip() for cell in cells), strict=False))
                    yield _Row(path.name, reader.line_num, values)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(path.name, 0, "", "", f"cannot be read: {reason}") from error
