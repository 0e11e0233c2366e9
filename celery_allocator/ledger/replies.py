"""What the ledger's methods answer with, and the constants they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_allocator.errors import TenantCapError, UnsatisfiableError
from celery_allocator.ledger import wire
from celery_allocator.model import Allocation, Requirements, Shape

#: Worth of a point of priority that no waiting makes up for: 17 years.
_EVER = 2**43
#: Limits that are words and no amounts.
_WORDS = ("node", "gpu_model", "label")


@dataclass(frozen=True)
class Options:
    """Constants of a ledger client, from the settings."""

    events_maxlen: int = 100_000
    start_deadline_s: float = 10.0
    max_losses: int = 3
    runtime_decay: float = 0.02
    #: Share that is added to the most that was seen, in what is suggested to ask for.
    recommend_margin: float = 0.15
    ttl_s: float = 3600.0
    max_waiting: int = 100_000
    journal_maxlen: int = 1000
    backfill: str = "easy"
    max_bypass: int = 100
    max_bypass_s: float = 300.0
    #: Points of priority per minute waited.
    age_weight: float = 0.0
    #: For how long a device counts as one where an affinity is loaded, and for how long one may wait for that; seconds.
    affinity_s: float = 3600.0
    affinity_wait_s: float = 2.0
    #: How many affinities stay loaded for each slot of a worker.
    affinity_keeps: int = 1
    #: The strategies that a user registered: name and Lua source of each.
    strategies: tuple[tuple[str, str], ...] = ()

    def common(self) -> tuple[int, int, str]:
        """What every script is given (see ``_base.lua``)."""
        bypass_ms = int(self.max_bypass_s * 1000)
        policy = f"{self.max_losses}:{self.max_bypass}:{bypass_ms}:{self.point}:{self.backfill}"
        policy += f":{round(self.affinity_s * 1000)}:{round(self.affinity_wait_s * 1000)}:{self.affinity_keeps}"
        return self.events_maxlen, int(self.start_deadline_s * 1000), policy

    @property
    def point(self) -> int:
        """What a point of priority is worth in line, in sixteenths of a millisecond, even (see ``_line.lua``)."""
        return _EVER if self.age_weight == 0 else max(2, min(_EVER, 2 * round(30_000 * 16 / self.age_weight)))


@dataclass(frozen=True)
class Available:
    """What is left beside an allocation: on its device and node once granted, on the roomiest device while it waits."""

    gpu_memory_mb: int
    cpu_cores: int
    ram_mb: int


def never(asked: Requirements, reply: list[Any]) -> UnsatisfiableError:
    """What a reply ``never`` stands for: what of ``asked`` no device there is could hold, or its tenant may not."""
    dimension, largest = reply[1].decode(), reply[2]
    if len(reply) > 3:
        return TenantCapError(asked.tenant, dimension, getattr(asked, dimension, 1), int(largest))
    of, _, name = dimension.partition(" ")
    wanted: Any = asked.share / 1000 if of == "gpu" else getattr(asked, dimension, None)
    if of == "label":
        wanted = dict(asked.labels).get(name)
    return UnsatisfiableError(dimension, wanted, largest.decode() if of in _WORDS else int(largest), words=of in _WORDS)


@dataclass(frozen=True)
class Grant:
    """A task that may start now: its message is to be published to ``queue``."""

    allocation_id: str
    token: int
    queue: str
    message: bytes


@dataclass(frozen=True)
class Mailbox:
    """A list of the ledger's own server that a worker's broker reads. Delivered is ``head``, the token, the message."""

    key: str
    head: str


@dataclass(frozen=True)
class Withholding:
    """What is withheld of a device and of its node's RAM now, in MB.

    ``leftover_blocks``: something waits that would fit there if no process without a task held memory.
    """

    grants: tuple[Grant, ...]
    gpu_memory_mb: int
    ram_mb: int
    leftover_blocks: bool


#: Why the gate refuses a delivery: its task has ended; is not granted (any more); was granted again, under a newer
#: token; runs already (delivered twice); is granted to a device that another worker serves by now.
REFUSALS = ("ended", "not_granted", "superseded", "running", "not_serving")


@dataclass(frozen=True)
class Line:
    """Who waits, in figures, at one instant ``at`` (seconds since the epoch, the ledger's clock).

    ``since``: since when (submit or ETA) who has waited longest of the first of each priority, tenant and shape;
    ``None``: nobody waits. ``shapes``: how many of each; some may be left out where there are very many. ``rejected``:
    deliveries that the gate has refused, by :data:`REFUSALS`.
    """

    at: float
    waiting: int
    since: float | None
    shapes: Mapping[Shape, int]
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Submitted:
    """Reply of :meth:`Ledger.submit`. ``known``: the id had been submitted before and nothing was changed.

    ``delivered``: the message lies in its device's mailbox already and need not be published.
    """

    allocation: Allocation
    available: Available
    known: bool = False
    delivered: bool = False


@dataclass(frozen=True)
class Released:
    """Reply of :meth:`Ledger.release`. ``done`` is False when there was nothing (any more) to release."""

    done: bool
    reason: str
    grants: tuple[Grant, ...] = ()
    #: Number in the journal, where it was noted.
    entry: int | None = None


@dataclass(frozen=True)
class Grown:
    """Reply of :meth:`Ledger.grow`. Where ``done``: MB of each GPU before and now; ``times``: how often that was done.

    Else ``reason`` says why not: ``spent`` (as often as it may be), ``largest`` (no known device, or cap of its tenant,
    is larger), ``no_gpu`` (it holds no GPU memory), or ``stale``, ``gone`` or ``not_running``: the grant is not the
    live one.
    """

    done: bool
    reason: str = ""
    from_mb: int = 0
    to_mb: int = 0
    times: int = 0
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True)
class Obituary:
    """A task that ended without running to its end; whoever writes its result then settles it."""

    allocation_id: str
    task_id: str
    task_name: str
    outcome: str  # "lost", "unreported", "parked", "expired", "cancelled"
    message: bytes
    #: How often it was granted again after it had lost its process or worker.
    losses: int = 0
    #: Why it was parked.
    reason: str = ""


@dataclass(frozen=True)
class Parked:
    """A message that cannot be read. ``parked_at``: seconds since the epoch."""

    allocation_id: str
    task_id: str
    task_name: str
    reason: str
    parked_at: float
    message: bytes


@dataclass(frozen=True)
class Repaired:
    """Reply of :meth:`Ledger.repair`: differences before, what is still wrong, and grants to be published."""

    found: tuple[str, ...]
    left: tuple[str, ...]
    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class Cancelled:
    """Reply of :meth:`Ledger.cancel`. ``state``: what it was in, or ``gone``; a task's ``running`` is left alone."""

    done: bool
    state: str
    obituary: Obituary | None = None
    grants: tuple[Grant, ...] = ()
    #: Number in the journal, where it was noted.
    entry: int | None = None


@dataclass(frozen=True)
class Runtime:
    """What is known of the run times of a task name and size, in seconds. ``runs``: how many were seen.

    Newer ones count more. ``p50_s``: half of them were shorter; ``p90_s``: nine of ten.
    """

    name: str
    size: str
    runs: int
    mean_s: float
    p50_s: float
    p90_s: float


@dataclass(frozen=True)
class BreakerState:
    """The breaker of a task name. ``allows``: how many more may be granted; ``None`` when it is closed.

    ``memory``: what its keeper remembers; ``aside``: how many it has set aside.
    """

    name: str
    allows: int | None
    memory: str
    aside: int


@dataclass(frozen=True)
class Ticked:
    """Reply of :meth:`Ledger.tick`. ``ran`` is False when somebody else ticked a moment ago."""

    ran: bool
    grants: tuple[Grant, ...] = ()
    obituaries: tuple[Obituary, ...] = ()
    lost_workers: tuple[str, ...] = ()


@wire.reads("a task that has ended")
def obituary(row: Any) -> Obituary:
    """One row of a script's reply. Raises :class:`LedgerError` when it is damaged."""
    allocation_id, task_id, name, outcome = (field.decode() for field in row[:4])
    return Obituary(allocation_id, task_id, name, outcome, row[4], int(row[5]), row[6].decode(errors="replace"))


@wire.reads("an allocation or the device that was granted")
def grants(rows: Any) -> tuple[Grant, ...]:
    """The grants in a script's reply. Raises :class:`LedgerError` when they are damaged."""
    return tuple(Grant(row[0].decode(), int(row[1]), row[2].decode(), row[3]) for row in rows)
