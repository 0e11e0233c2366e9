"""The decisions of a circuit breaker for one task name: a pure state machine, told counts, answering with actions.

::

    closed ── failure rate over its bound ──► open ── its time is over ──► half-open ── probes succeed ──► closed
                                               ▲                               │
                                               └── probes fail: longer ────────┘

It holds no clock and reads nothing. Whoever keeps it (beside the ledger, say) asks :meth:`Breaker.counts_from` from
when on outcomes are to be counted, counts, calls :meth:`Breaker.step`, keeps the state that comes back, and does what
the action says. Each answer is complete in itself, so a step that was lost or made twice does no harm.

In the ledger :class:`Close`, :class:`Open` and :class:`LetPass` are what ``Ledger.set_breaker`` takes as ``allows``:
``None``, 0 and so many; ``to_wire()`` is the ``memory`` it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from celery_allocator.errors import SettingsError


class Phase(str, Enum):
    """Where a breaker stands."""

    CLOSED = "closed"  #: grants go on
    OPEN = "open"  #: nothing of that name is granted
    HALF_OPEN = "half-open"  #: a few are, to see


@dataclass(frozen=True)
class BreakerSettings:
    """When a breaker opens, for how long, and what closes it. Times in seconds."""

    #: It opens above this share of failures among what ended well or wrong.
    failure_rate: float = 0.5
    #: Only what ended in this time counts,
    window_s: float = 300.0
    #: and only if at least so many did.
    min_samples: int = 10
    #: It stays open so long,
    open_s: float = 60.0
    #: each time longer by this factor when its probes failed,
    backoff: float = 2.0
    #: and never longer than this.
    longest_open_s: float = 3600.0
    #: Tasks that are let pass to see. It closes when so many have ended within the bound.
    probes: int = 3

    def __post_init__(self) -> None:
        for name, sound in (
            ("failure_rate", 0 <= self.failure_rate < 1),
            ("window_s", self.window_s > 0),
            ("min_samples", self.min_samples >= 1),
            ("open_s", self.open_s > 0),
            ("backoff", self.backoff >= 1),
            ("longest_open_s", self.longest_open_s >= self.open_s),
            ("probes", self.probes >= 1),
        ):
            if not sound:
                raise SettingsError(f"a breaker cannot have {name}={getattr(self, name)!r}")

    def open_for(self, failed_probings: int) -> float:
        """Seconds to stay open after so many failed probings in a row."""
        # The exponent is bounded: no number overflows, and beyond it the longest time is reached in any case of use.
        return min(self.longest_open_s, self.open_s * self.backoff ** min(failed_probings, 64))

    @property
    def tolerated(self) -> int:
        """How many of the probes may fail."""
        return int(self.failure_rate * self.probes)


@dataclass(frozen=True)
class Counts:
    """What ended well and wrong since :meth:`Breaker.counts_from`; what was cancelled, expired or retried is neither.

    While half-open only probes count: tasks granted since it has been so. ``in_flight``: probes that have not ended.
    """

    successes: int = 0
    failures: int = 0
    in_flight: int = 0

    @property
    def ended(self) -> int:
        """Both together."""
        return self.successes + self.failures


@dataclass(frozen=True)
class Close:
    """Grant without limit."""


@dataclass(frozen=True)
class Open:
    """Grant nothing of that name until ``until`` (seconds on the caller's clock), and step again then."""

    until: float


@dataclass(frozen=True)
class LetPass:
    """Grant ``probes`` more of that name than are in flight now, and no others; 0: wait for those."""

    probes: int


Action = Close | Open | LetPass


@dataclass(frozen=True)
class Breaker:
    """The state: phase, since when (seconds on the caller's clock), and how often probes have failed in a row."""

    phase: Phase = Phase.CLOSED
    since: float = 0.0
    failed_probings: int = 0

    def counts_from(self, now: float, settings: BreakerSettings) -> float:
        """From when on outcomes count: the window's begin, but never from before this phase began."""
        if self.phase is Phase.CLOSED:
            return max(self.since, now - settings.window_s)
        return self.since

    def step(self, counts: Counts, now: float, settings: BreakerSettings) -> tuple[Breaker, Action]:
        """The state after what was counted, and what to do. Calling it again without news changes nothing."""
        if self.phase is Phase.CLOSED:
            if counts.ended >= settings.min_samples and counts.failures > settings.failure_rate * counts.ended:
                return self._opened(now, settings, failed_probings=0)
            return self, Close()
        if self.phase is Phase.OPEN:
            until = self.since + settings.open_for(self.failed_probings)
            if now < until:
                return self, Open(until)
            return replace(self, phase=Phase.HALF_OPEN, since=now), LetPass(settings.probes)
        return self._probed(counts, now, settings)

    def _probed(self, counts: Counts, now: float, settings: BreakerSettings) -> tuple[Breaker, Action]:
        if counts.failures > settings.tolerated:
            return self._opened(now, settings, failed_probings=self.failed_probings + 1)
        if counts.ended >= settings.probes:
            return Breaker(Phase.CLOSED, now), Close()
        # A probe that was cancelled has not ended and flies no more: another takes its place.
        return self, LetPass(max(0, settings.probes - counts.ended - counts.in_flight))

    def to_wire(self) -> dict[str, Any]:
        """As plain JSON-ready data; :meth:`from_wire` reads it back."""
        return {**asdict(self), "phase": self.phase.value}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Breaker:
        """The inverse of :meth:`to_wire`. Raises ``ValueError`` or ``LookupError`` for what it is not."""
        values = {field.name: data[field.name] for field in fields(cls)}
        return cls(Phase(values["phase"]), float(values["since"]), int(values["failed_probings"]))

    @staticmethod
    def _opened(now: float, settings: BreakerSettings, *, failed_probings: int) -> tuple[Breaker, Action]:
        opened = Breaker(Phase.OPEN, now, failed_probings)
        return opened, Open(now + settings.open_for(failed_probings))
