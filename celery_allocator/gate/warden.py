"""The warden keeps the circuit breakers: it follows the event stream, lets each breaker decide, and tells the ledger.

One at a time does, whoever is on duty. What a breaker is in, the ledger remembers, so that the next one on duty
goes on from there; what tasks did lately, it reads again from the stream.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery_allocator.errors import SettingsError
from celery_allocator.gate.breaker import Breaker, BreakerSettings, Close, LetPass, Phase
from celery_allocator.gate.tally import Tally
from celery_allocator.ledger import BreakerState, Grant, Ledger

logger = logging.getLogger(__name__)

#: Entries of the stream per read.
_BATCH = 2000


class Warden:
    """Of one pool. ``publish`` is given the grants that a breaker's decision brought about."""

    def __init__(self, settings: BreakerSettings, publish: Callable[[tuple[Grant, ...]], None]) -> None:
        self._settings = settings
        self._publish = publish
        self.retire()

    def retire(self) -> None:
        """Somebody else is on duty now: what is known here grows old."""
        self._tally = Tally()
        self._position = ""

    def step(self, ledger: Ledger) -> None:
        """Read what has happened since the last step, and let every breaker decide. Raises what the ledger raises."""
        now = ledger.server_time()
        kept = {state.name: state for state in ledger.breakers()}
        known = {name: found for name, state in kept.items() if (found := remembered(state)) is not None}
        self._read(ledger, now, known)
        for name in {*self._tally.names, *known}:
            if name not in kept or name in known:  # the others were set by an operator
                self._decide(ledger, name, known.get(name), now, kept[name].allows if name in kept else None)
        oldest = min((breaker.since for breaker in known.values()), default=now)
        self._tally.forget(min(now - self._settings.window_s, oldest))

    def _read(self, ledger: Ledger, now: float, known: Mapping[str, Breaker]) -> None:
        if not self._position:
            since = min([now - self._settings.window_s, *(breaker.since for breaker in known.values())])
            self._position = f"{max(0, int(since * 1000))}-0"
        while True:
            entries = ledger.events(self._position, _BATCH)
            for self._position, fields in entries:
                self._tally.feed(fields)
            if len(entries) < _BATCH:
                return

    def _decide(self, ledger: Ledger, name: str, before: Breaker | None, now: float, allows_now: int | None) -> None:
        breaker = before or Breaker()
        since = breaker.counts_from(now, self._settings)
        counts = self._tally.counts(name, since, probes=breaker.phase is Phase.HALF_OPEN)
        after, action = breaker.step(counts, now, self._settings)
        memory = json.dumps(after.to_wire())
        if after == breaker:
            if before is not None and after.phase is Phase.CLOSED and now - after.since > self._settings.window_s:
                ledger.set_breaker(name, None)  # what failed before it closed is out of the window: nothing to remember
            elif isinstance(action, LetPass) and action.probes != allows_now:
                self._publish(ledger.set_breaker(name, action.probes, memory)[0].grants)
            return
        allows = None if isinstance(action, Close) else action.probes if isinstance(action, LetPass) else 0
        operated, aside = ledger.set_breaker(name, allows, memory)
        self._publish(operated.grants)
        told = f"{counts.failures} of {counts.ended} tasks failed" if counts.ended else "its time is over"
        log = logger.warning if after.phase is Phase.OPEN else logger.info
        log("the breaker of %s is %s now: %s; %d set aside", name, after.phase.value, told, aside)


def remembered(state: BreakerState) -> Breaker | None:
    """The breaker as its keeper left it; ``None`` for one that an operator has set."""
    try:
        memory = json.loads(state.memory)
        return Breaker.from_wire(memory)
    except (ValueError, LookupError, TypeError):
        return None


def breaker_settings(given: Mapping[str, Any] | None) -> BreakerSettings | None:
    """From the setting ``allocator_breaker``; ``None``: no breakers. Raises :class:`SettingsError`."""
    if given is None:
        return None
    try:
        return BreakerSettings(**given)
    except TypeError as error:
        known = ", ".join(BreakerSettings.__dataclass_fields__)
        raise SettingsError(f"allocator_breaker is {dict(given)!r}: it takes {known} ({error})") from None
