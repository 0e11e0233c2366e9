"""A history made by hand: rows put into the real tables, on a clock of the test's own."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy.orm import Session

from celery_allocator.gate import Gate, Rule, RuleResult, Sources, evaluate, kinds
from celery_allocator.history.database import history_backend_url, open_engine
from celery_allocator.history.models import AllocationRow, Event, Gap
from celery_allocator.history.schema import Schema
from celery_allocator.history.store import History
from celery_allocator.settings import Settings

#: When the tests' hour begins.
T0 = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


def at(seconds: float) -> datetime:
    """So many seconds after the hour began."""
    return T0 + timedelta(seconds=seconds)


class Book:
    """Write rows with ``allocation``, ``event`` and ``gap``, and measure rules over the hour from ``T0`` on."""

    def __init__(self, url: str, pool: str) -> None:
        self.settings = Settings(history_backend_url=url, pool=pool)
        self.pool = pool
        made = history_backend_url(self.settings)
        Schema(made).upgrade()
        self._engine = open_engine(made, writes=True)
        self.history = History(made, pool)
        self._numbers = itertools.count(1)
        self._rows: list[Any] = []

    def close(self) -> None:
        """Close its connections."""
        self.history.close()
        self._engine.dispose()

    def allocation(self, name: str = "", **columns: Any) -> str:
        """One allocation; times in seconds after ``T0``. Returns its id."""
        name = name or f"a{next(self._numbers)}"
        row: dict[str, Any] = {
            "task_id": f"task of {name}",
            "task_name": "work",
            "tenant": "",
            "kind": "task",
            "state": "released",
            "gpu_memory_mb": 1000,
            "cpu_cores": 1,
            "ram_mb": 100,
            "priority": 0,
            "strategy": "best_fit",
            "submitted_at": 0,
            "grants": 1,
            "losses": 0,
            "run_s": 0.0,
            "held_s": 0.0,
            "last_event_id": "0-0",
            "last_event_at": 10**6,
            "node": "n1",
            "device": "gpu_0",
            **columns,
        }
        times = {key: at(value) for key, value in row.items() if key.endswith("_at") and value is not None}
        self._rows.append(AllocationRow(pool=self.pool, allocation_id=name, **{**row, **times}))
        return name

    def started(self, waited: float, *, at_s: float = 1800, **columns: Any) -> str:
        """One that first started at ``at_s``, after it had waited so long."""
        times = {"submitted_at": at_s - waited, "granted_at": at_s - 1, "started_at": at_s}
        return self.allocation(**{**times, "wait_s": waited, **columns})

    def ended(self, outcome: str, *, at_s: float = 1800, **columns: Any) -> str:
        """One that ended so."""
        return self.allocation(ended_at=at_s, outcome=outcome, **columns)

    def event(self, what: str, name: str, seconds: float, /, **fields: Any) -> None:
        """One entry of the stream, in the order of the calls."""
        moment, sequence = at(seconds), next(self._numbers)
        ms = int(moment.timestamp() * 1000)
        texts = {key: str(value) for key, value in fields.items()}
        self._rows.append(
            Event(
                pool=self.pool,
                event_id=f"{ms}-{sequence}",
                ordinal=ms * 2**20 + sequence,
                event=what,
                at=moment,
                object_id=name,
                task_id="",
                fields=texts,
            )
        )

    def gap(self, first_s: float, last_s: float) -> None:
        """Events of that time are missing."""
        first, last = (f"{int(at(seconds).timestamp() * 1000)}-0" for seconds in (first_s, last_s))
        gap = Gap(pool=self.pool, first_event_id=first, last_event_id=last, noticed_at=at(last_s), reason="trimmed")
        self._rows.append(gap)

    def measure(self, kind: str, *, end_s: float = 3600, **said: Any) -> RuleResult:
        """One rule over the hour that ends at ``end_s``; options and filters as in a file."""
        with Session(self._engine) as session:
            session.add_all(self._rows)
            session.commit()
        self._rows = []
        filters = {key: (said.pop(key),) for key in ("task", "tenant", "device") if key in said}
        options = {key: said.pop(key) for key in kinds()[kind].options if key in said}
        said.setdefault("maximum", 0.0)
        rule = Rule(kind, kinds()[kind], window=HOUR, filters=filters, options=options, **said)
        sources = Sources(self.settings, history=self.history)
        (result,) = evaluate(Gate("test", (rule,)), sources, until=at(end_s)).results
        return result

    def value(self, kind: str, **said: Any) -> tuple[float | None, int]:
        """Its value and its samples."""
        result = self.measure(kind, **said)
        return result.value, result.measurement.samples
