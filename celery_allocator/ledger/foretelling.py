"""What the ledger says of times to come: when a task would start, what is kept for whom, how true its dates were."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from celery_allocator.ledger import keys, replies, wire
from celery_allocator.ledger.access import Access
from celery_allocator.ledger.replies import Runtime
from celery_allocator.model import KIND_CODES, Kind, Requirements, Shape, Strategy, more_of


@dataclass(frozen=True)
class Plan:
    """Where and when a task would start if it were submitted ``at`` (seconds since the epoch, the ledger's clock).

    ``device``: node/device that it would be granted at once; ``None``: it would wait, at ``position`` in line, and
    start by ``estimated_start_at`` in one of two cases, by ``estimated_start_p90_at`` in nine of ten (``None``: nobody
    knows).
    ``cap``: the cap of its tenant that it would wait for; empty: none. ``affinity_until``: until when it would wait at
    most for a device where its affinity is loaded, though another one has room; ``None``: it would not.
    """

    at: float
    device: str | None
    position: int
    estimated_start_at: float | None
    estimated_start_p90_at: float | None
    cap: str = ""
    affinity_until: float | None = None


@dataclass(frozen=True)
class Reservation:
    """What is kept for the first in line that does not fit.

    ``device``: node/device, on whose node others are granted only what does not delay it; ``None``: it has been passed
    ``passed`` times since ``since``, and nothing is kept yet. ``starts_at``: when enough will be free by the run times
    of what runs there, ``None`` where these are not known: then the device is emptied for it. Times: seconds since the
    epoch.
    """

    allocation_id: str
    device: str | None
    starts_at: float | None
    since: float
    passed: int


@dataclass(frozen=True)
class Patience:
    """Tasks of one ``shape`` and ``tenant`` wait for a device where their affinity is loaded, though another has room.

    They do so until ``until`` at most. ``at``: when that was read. Both: seconds since the epoch, the ledger's clock.
    """

    shape: Shape
    tenant: str
    until: float
    at: float


@dataclass(frozen=True)
class Accuracy:
    """How true the dates were that were given to those that had to wait. Errors in seconds, ``None``: none scored yet.

    ``scored``: starts of what had a date; ``covered``: share of them at or before their p90 (aim: 0.9).
    ``median_error_s``: half of the starts were off their p50 by less; ``p90_error_s``: nine of ten. ``thumb_error_s``:
    the same half for the rule of thumb, position · mean run time ÷ what runs at a time.
    """

    scored: int
    covered: float | None
    median_error_s: float | None
    p90_error_s: float | None
    thumb_error_s: float | None


class Foretelling(Access):
    """The methods about times to come."""

    @wire.reads("the line")
    def plan(
        self,
        task_name: str,
        requirements: Requirements,
        *,
        strategy: Strategy | str = Strategy.BEST_FIT,
        kind: Kind = Kind.TASK,
    ) -> Plan:
        """Where and when such a task would start now. Changes nothing.

        Raises :class:`UnsatisfiableError` if no known device could ever hold it, :class:`TenantCapError` if its
        tenant's caps are below it.
        """
        req = requirements
        reply = self._run(
            "plan",
            task_name,
            req.gpu_memory_mb,
            req.cpu_cores,
            req.ram_mb,
            req.gpu_count,
            req.priority,
            Strategy(strategy).value if isinstance(strategy, Strategy) else strategy,
            KIND_CODES[kind],
            req.tenant,
            req.size,
            req.expected_runtime_s * 1000 or "",
            more_of(req),
        )
        at = int(reply[-1]) / 1000 if reply[0] != b"never" else 0.0
        if reply[0] == b"now":
            return Plan(at, reply[1].decode(), 0, at, at)
        if reply[0] == b"later":
            _, position, p50, p90, cap, until, _now = reply
            dates = (wire.seconds(p50), wire.seconds(p90))
            return Plan(at, None, int(position), *dates, cap.decode(), wire.seconds(until))
        raise replies.never(req, reply)

    @wire.reads("the reservation")
    def reservation(self) -> Reservation | None:
        """What is kept for the first in line; ``None``: nothing."""
        fields = ("id", "dev", "at", "since", "by")
        found = self._guard(self.client.hmget, keys.key(self.pool, "reserved"), fields)
        if not found[0]:
            return None
        name, device, at, since, passed = ((value or b"").decode() for value in found)
        return Reservation(name, device or None, wire.seconds(at), float(since) / 1000, int(passed or 0))

    @wire.reads("who waits for where an affinity is loaded")
    def patience(self) -> tuple[Patience, ...]:
        """Who waits now for a device where an affinity is loaded, though another one has room."""
        read = partial(self.client.zrange, withscores=True)
        lanes: Any = self._guard(read, keys.key(self.pool, "patience"), 0, -1)
        at = self.server_time() if lanes else 0.0
        found = []
        for lane, until in lanes:
            text, _pace, tenant = lane.decode().split("/", 2)
            shape = Shape.parse(text)
            if shape is not None and until / 1000 > at:
                found.append(Patience(shape, tenant, until / 1000, at))
        return tuple(found)

    @wire.reads("how good dates were")
    def accuracy(self) -> Accuracy:
        """How true the dates of starts were so far; the newest count most in the errors."""
        scored, covered, *errors = self._run("accuracy")
        count = int(scored)
        told = (int(error) / 1000 if error else None for error in errors)
        return Accuracy(count, int(covered) / count if count else None, *told)

    @wire.reads("what was learned about run times")
    def runtimes(self) -> tuple[Runtime, ...]:
        """What the ledger has learned about run times, per task name and size; name ``*``: all."""
        return tuple(
            Runtime(name.decode(), size.decode(), int(runs), *(int(ms) / 1000 for ms in (mean, half, most)))
            for name, size, runs, mean, half, most in self._run("learned")
        )
