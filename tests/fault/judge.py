"""The verdict on one batch of rounds, from records, results and, for leaks alone, the ledger.

Nothing of the ledger's book-keeping is believed where it is a question of what ran, when and with what.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from celery_allocator.ledger import Ledger
from celery_allocator.model import ClusterState
from tests.fault.history import Run
from tests.support.ledger_checks import broken, left_behind
from tests.support.records import Capacity, conflicts

#: In the reason of a task that was lost, and that may not be repeated.
_NOT_REPEATED = "acks_late is not set"
#: Seconds by which the end of a process may be noticed late.
_SEEN_LATE_S = 0.25


@dataclass
class Sent:
    """One task that a batch sent. ``ends``: the states it may end in; empty when it may end without a result."""

    task_id: str
    name: str
    ends: frozenset[str]
    victim: bool = False
    accepted: bool = True
    #: What was found in the result backend; ``PENDING`` when nothing was.
    state: str = "PENDING"
    reason: str = ""
    #: Seconds of the monotonic clock at which the fault struck it, where that is not the end of its process.
    struck: float | None = None


@dataclass
class Verdict:
    """What was wrong, each as a sentence, and how long slots took to come back (seconds)."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    tasks: int = 0
    #: The end of every worker's log, where something was wrong.
    logs: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Everything that was wrong."""
        groups = {"lost": self.lost, "doubled": self.doubled, "overlap": self.overlaps, "leaked": self.leaked}
        return [f"{name}: {text}" for name, texts in groups.items() for text in texts]

    def add(self, other: Verdict) -> None:
        """Add up."""
        for name in ("lost", "doubled", "overlaps", "leaked", "recoveries"):
            getattr(self, name).extend(getattr(other, name))
        self.tasks += other.tasks
        self.logs = (self.logs + other.logs)[-20_000:]


def lost(sent: Iterable[Sent], runs: Sequence[Run], *, unheard: bool = False) -> list[str]:
    """Accepted tasks without a visible end, or with one that nothing of what happened explains.

    ``unheard``: the ledger may have granted a worker's claim and its answer been lost. A task that may not be repeated
    then fails without having run: whether it began, nobody but the worker that was cut off can tell.
    """
    starts = Counter(run.task_id for run in runs)
    found = []
    for task in sent:
        started = starts[task.task_id]
        label = f"{task.name}[{task.task_id}], started {started} times, "
        if not task.accepted:
            if started and task.state == "PENDING":
                found.append(label + "was refused to its caller, and has no result")
        elif unheard and not started and task.state == "FAILURE" and _NOT_REPEATED in task.reason:
            continue
        elif task.ends and task.state not in task.ends:
            found.append(label + f"is {task.state} ({task.reason}), should be {' or '.join(sorted(task.ends))}")
        elif not task.ends and not started:
            found.append(label + "neither started nor ended")
        elif task.state == "SUCCESS" and not started:
            found.append(label + "has a result, but never ran")
    return found


def doubled(runs: Iterable[Run]) -> list[str]:
    """Grants that started more than once."""
    starts = Counter(run.grant for run in runs if run.token)
    return [f"{allocation} started {n} times with token {token}" for (allocation, token), n in starts.items() if n > 1]


def capacity(state: ClusterState) -> dict[str, Capacity]:
    """What each node has, and each device's slots."""
    return {
        node.node: Capacity(
            frozenset(node.cpu_cores),
            node.ram_mb,
            {device.device_id: device.memory_mb for device in node.devices},
            {device.device_id: device.slots for device in node.devices},
        )
        for node in state.nodes
    }


def overlaps(runs: Iterable[Run], there: Mapping[str, Capacity], now: float) -> list[str]:
    """Instants at which a node's runs held more than it has, and stale runs that went on."""
    by_node: dict[str, list[Run]] = defaultdict(list)
    by_claim: dict[str, list[Run]] = defaultdict(list)
    found = []
    for run in runs:
        if run.token:
            by_node[run.node].append(run)
            by_claim[run.allocation_id].append(run)
        else:
            found.append(f"{run.task}[{run.task_id}] ran without an allocation")
    for some in by_claim.values():
        # A claim that was granted again: the old holder is gone before the new one starts.
        records = sorted((run.record(now) for run in some), key=lambda record: (record.start, record.token))
        for before, after in itertools.pairwise(records):
            if before.token != after.token and before.end > after.start + _SEEN_LATE_S:
                late = before.end - after.start
                found.append(
                    f"{before.allocation_id} ran under token {before.token} for {late:.2f} s beside token {after.token}"
                )
    for node, some in by_node.items():
        # The same grant twice is counted as doubled, not here.
        records = {run.grant: run.record(now) for run in some}
        found += [f"{node} {text}" for text in conflicts(records.values(), there[node])]
    return found


def leaked(ledger: Ledger) -> list[str]:
    """What is not free although everything has ended."""
    state, held = ledger.snapshot(), ledger.held()
    found = [f"verify: {text}" for text in ledger.verify()] + [f"books: {text}" for text in broken(state, held)]
    found += [f"{a.task_name}[{a.task_id}] is still {a.state.value} on {a.device_id}" for a in held]
    found += [f"{a.task_name}[{a.task_id}] still {a.state.value}" for a in (*ledger.queue(), *ledger.delayed())]
    for node in state.nodes:
        if set(node.cpu_cores_free) != set(node.cpu_cores) or node.ram_free_mb != node.ram_mb:
            found.append(f"{node.node} has cores {node.cpu_cores_free} and {node.ram_free_mb} MB of RAM free")
    for device in state.devices:
        if (device.memory_claimed_mb, device.slots_free) != (0, device.slots):
            found.append(f"{device.key} has {device.memory_free_mb} MB and {device.slots_free} slots free")
    if not found:
        found += [f"key {name} is left behind" for name in left_behind(ledger)]
    return found


def recoveries(sent: Iterable[Sent], runs: Iterable[Run], freed: Mapping[tuple[str, int], float]) -> list[float]:
    """For each run of a victim: seconds from the fault's instant until the ledger had its slot back.

    Where the fault struck victims, only the runs that it struck count; else the end of a run is its instant.
    """
    victims = {task.task_id: task for task in sent if task.victim}
    strikes = any(task.struck is not None for task in victims.values())
    found = []
    for run in runs:
        task, back = victims.get(run.task_id), freed.get(run.grant)
        if task is None or back is None:
            continue
        struck = task.struck if strikes else run.end
        if struck is not None and run.start <= struck:
            found.append(max(0.0, back - struck))
    return found
