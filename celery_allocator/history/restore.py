"""After a lost ledger: what the history can give back, and what only it knows of.

A ledger that came back empty has lost what it had learned (run times, and what runs use), what operators had told it
(what is cordoned, what tenants may hold), and what was in flight. The first two are given back; the last is told, for
it cannot be run again from here: the messages were in the ledger.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import select

from celery_allocator.errors import UnknownTargetError
from celery_allocator.history.models import AllocationRow, Event
from celery_allocator.history.past_use import past_use
from celery_allocator.history.store import History
from celery_allocator.ledger import Grant, Ledger
from celery_allocator.model import ClusterState

#: What an operator last said of a node or device.
_OPERATORS = {"cordoned": "cordoned", "draining": "draining", "uncordoned": "ready"}
#: Estimates for all names together stand under this one.
ALL_NAMES = "*"
#: Run times of each name that are given back: what came before these weighs nothing any more, by the default of
#: ``allocator_runtime_decay``.
MOST_RUNS = 500


class Said(NamedTuple):
    """An operator's last word on a node or device: cordoned, draining or ready, and why."""

    state: str
    reason: str


@dataclass
class Restoration:
    """What was, or would be, given back. Run times in seconds."""

    #: Means that were set; and those that the ledger has itself, with its own value.
    runtimes: dict[str, float] = field(default_factory=dict)
    runtimes_kept: dict[str, float] = field(default_factory=dict)
    #: Task names whose use was told, with the number of runs that it is of; and those of which the ledger knows itself.
    peaks: dict[str, int] = field(default_factory=dict)
    peaks_kept: list[str] = field(default_factory=list)
    #: Quotas that operators had given to tenants, as their JSON; and tenants to whom one has given another since.
    quotas: dict[str, str] = field(default_factory=dict)
    quotas_kept: list[str] = field(default_factory=list)
    #: Nodes and devices that were closed again, with the state.
    closed: dict[str, str] = field(default_factory=dict)
    #: Why, of those for which that was said.
    reasons: dict[str, str] = field(default_factory=dict)
    #: Whether the pool was stopped again (``True``: an operator had paused it) or resumed; ``None``: left as it is.
    stopped: bool | None = None
    #: Nodes and devices that the ledger does not know (yet), or has in another state by itself.
    unknown: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)
    #: Allocations that had not ended, and that the ledger has no record of.
    in_flight: list[AllocationRow] = field(default_factory=list)
    #: Grants that closing a node made elsewhere, to be published.
    grants: tuple[Grant, ...] = ()


class Restorer:
    """Compares one pool's ledger with its history, and gives back."""

    def __init__(self, history: History, ledger: Ledger, *, force: bool = False, publishes: bool = True) -> None:
        """``force``: what the ledger knows itself is overwritten. ``publishes``: the caller publishes the grants."""
        self._history = history
        self._ledger = ledger
        self._force = force
        self._publishes = publishes

    def plan(self) -> Restoration:
        """What :meth:`apply` would do; changes nothing."""
        found = Restoration()
        known = {} if self._force else self._ledger.learned()
        for name, runs in self.runtimes().items():
            if name in known:
                found.runtimes_kept[name] = known[name]
            else:
                found.runtimes[name] = self._mean(runs)
        measured = set() if self._force else {known.task_name for known in self._ledger.recommend()}
        for name, past in past_use(self._history).items():
            if name in measured:
                found.peaks_kept.append(name)
            else:
                found.peaks[name] = len(past.runs)
        self._plan_quotas(found)
        cluster = self._ledger.snapshot()
        self._plan_closed(found, cluster)
        stopped = self.pool_stopped()
        if stopped != (cluster.paused == "stopped") and (stopped or self._force):
            found.stopped = stopped
        found.in_flight = self.in_flight()
        return found

    def apply(self) -> Restoration:
        """Give back. Raises :class:`LedgerUnavailable`; what was given back until then stays."""
        found = self.plan()
        runs = {name: list(runs) for name, runs in self.runtimes().items() if name in found.runtimes}
        found.runtimes = {name: found.runtimes[name] for name in self._ledger.learn(runs, overwrite=self._force)}
        for name, past in past_use(self._history).items() if found.peaks else ():
            if name in found.peaks:
                self._ledger.learn_peaks(name, list(past.runs), past.declared, overwrite=self._force)
        if found.stopped is not None:  # before anything that grants
            found.grants += self._ledger.pause(stop=found.stopped, publishes=self._publishes).grants
        for name, packed in found.quotas.items():
            found.grants += self._ledger.restore_tenant(name, packed, publishes=self._publishes).grants
        for target, state in list(found.closed.items()):
            try:
                if state == "ready":
                    grants = self._ledger.uncordon(target, publishes=self._publishes)
                else:
                    drain, why = state == "draining", found.reasons.get(target, "")
                    grants, _ = self._ledger.cordon(target, drain=drain, publishes=self._publishes, reason=why)
            except UnknownTargetError:  # gone since
                found.unknown[target] = found.closed.pop(target)
                found.reasons.pop(target, None)
            else:
                found.grants += grants
        return found

    def _plan_closed(self, found: Restoration, cluster: ClusterState) -> None:
        now = {node.node: Said(_closed(node.state), "") for node in cluster.nodes}
        now |= {device.key: Said(_closed(device.state), device.reason) for device in cluster.devices}
        ours: set[str] = set()  # devices that are closed because we close their node
        for target, said in self.operator_states().items():
            if target not in now:
                if said.state != "ready":
                    found.unknown[target] = said.state
                continue
            is_it = now[target] == said if target in ours else now[target].state == said.state
            if is_it:
                continue
            # A ledger that was lost has everything open. What is closed there, somebody has closed since.
            if not (self._force or said.state != "ready" or target in ours):
                found.differing[target] = said.state
                continue
            found.closed[target] = said.state
            if said.reason:
                found.reasons[target] = said.reason
            if "/" not in target:
                devices = {key for key in now if key.startswith(f"{target}/")}
                now |= dict.fromkeys(devices, said)
                ours |= devices

    def _plan_quotas(self, found: Restoration) -> None:
        there = {tenant.name: tenant for tenant in self._ledger.tenants()}
        for name, packed in self.operator_quotas().items():
            tenant = there.get(name)
            if tenant is not None and {**tenant.quota.as_dict(), "by": tenant.by} == json.loads(packed):
                continue
            if tenant is not None and tenant.by == "operator" and not self._force:
                found.quotas_kept.append(name)
            else:
                found.quotas[name] = packed

    def runtimes(self) -> dict[str, deque[float]]:
        """The newest run times of successes by task name, in seconds, oldest first: the ledger learns from these."""
        found: dict[str, deque[float]] = {}
        for name, ran in self._runs():
            for key in (name, ALL_NAMES):
                found.setdefault(key, deque(maxlen=MOST_RUNS)).append(ran)
        return found

    def operator_quotas(self) -> dict[str, str]:
        """The last quota of each tenant, as its JSON, where an operator gave it; what settings say comes by itself."""
        last: dict[str, str] = {}
        query = select(Event.object_id, Event.fields).where(Event.pool == self._history.pool, Event.event == "tenant")
        with self._history.session() as session:
            for name, fields in session.execute(query.order_by(Event.ordinal)):
                last[name] = str(fields.get("quota", ""))
        return {name: packed for name, packed in sorted(last.items()) if _by_operator(packed)}

    def _mean(self, runs: deque[float]) -> float:
        """As the ledger weighs them (``absorb`` in ``_runtimes.lua``)."""
        mean = 0.0
        for number, ran in enumerate(runs, start=1):
            mean += max(self._ledger.options.runtime_decay, 1 / number) * (ran - mean)
        return mean

    def operator_states(self) -> dict[str, Said]:
        """The last word of operators on each node and device. Nodes come first.

        What is said of a node is said of all its devices.
        """
        states: dict[str, Said] = {}
        query = select(Event.object_id, Event.event, Event.fields)
        query = query.where(Event.pool == self._history.pool, Event.event.in_(_OPERATORS))
        with self._history.session() as session:
            for target, event, fields in session.execute(query.order_by(Event.ordinal)):
                if "/" not in target:
                    states = {name: old for name, old in states.items() if not name.startswith(f"{target}/")}
                states[target] = Said(_OPERATORS[event], str(fields.get("reason", "")))
        return dict(sorted(states.items(), key=lambda item: "/" in item[0]))

    def pool_stopped(self) -> bool:
        """Whether operators' last word was to grant nothing in the whole pool."""
        # The pool's own events have no object.
        said = [event for event in self._history.events_of("") if event.fields.get("by") == "operator"]
        return bool(said) and said[-1].event == "paused"

    def in_flight(self) -> list[AllocationRow]:
        """Allocations that had not ended by the history, and that the ledger has no record of; oldest first."""
        query = (
            select(AllocationRow)
            .where(AllocationRow.pool == self._history.pool, AllocationRow.ended_at.is_(None))
            .order_by(AllocationRow.submitted_at, AllocationRow.allocation_id)
        )
        with self._history.session() as session:
            rows = session.scalars(query).all()
        there = self._ledger.recorded_of([row.allocation_id for row in rows])
        return [row for row in rows if row.allocation_id not in there]

    def _runs(self) -> Iterator[tuple[str, float]]:
        """Task name and run time of each success, oldest first."""
        query = (
            select(AllocationRow.task_name, AllocationRow.started_at, AllocationRow.ended_at)
            .where(
                AllocationRow.pool == self._history.pool,
                AllocationRow.outcome == "success",
                AllocationRow.started_at.is_not(None),
                AllocationRow.ended_at.is_not(None),
            )
            .order_by(AllocationRow.ended_at)
        )
        with self._history.session() as session:
            for name, began, ended in session.execute(query.execution_options(yield_per=5000)):
                assert began is not None and ended is not None  # by the query
                yield name, (ended - began).total_seconds()


def _by_operator(packed: str) -> bool:
    try:
        quota = json.loads(packed)
    except ValueError:  # none, or damaged
        return False
    return isinstance(quota, dict) and quota.get("by") == "operator"


def _closed(state: str) -> str:
    """A state without what is no operator's doing: a device that is offline is not closed."""
    return state if state in ("cordoned", "draining") else "ready"
