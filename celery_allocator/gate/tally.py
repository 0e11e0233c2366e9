"""What the event stream says of each task name: how its tasks ended lately, and what of it is in flight."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from celery_allocator.gate.breaker import Counts

#: Endings that are remembered for each name, at most.
_MOST = 10_000
#: Ends of a grant that say nothing of how well a task does.
_NEUTRAL = frozenset({"requeued", "withdrawn", "grown", "cancelled", "expired", "parked", "restored"})
_WELL, _WRONG = frozenset({"success"}), frozenset({"failure"})


@dataclass
class _Name:
    """One task name: (end, granted, went well) of what ended, and when what holds something was granted. Seconds."""

    ended: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=_MOST))
    flying: dict[str, float] = field(default_factory=dict)


class Tally:
    """Fed with entries in their order; each costs little, whatever was before."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = defaultdict(_Name)
        self._name_of: dict[str, str] = {}

    def feed(self, fields: Mapping[str, str]) -> None:
        """Take one entry of the event stream into account."""
        event, allocation_id = fields["event"], fields.get("id", "")
        at = int(fields["at"]) / 1000
        if event in ("granted", "reclaimed"):
            self._name_of[allocation_id] = fields["name"]
            self._names[fields["name"]].flying.setdefault(allocation_id, at)
        elif event == "released":
            outcome = fields.get("outcome", "")
            verdict = True if outcome in _WELL else False if outcome in _WRONG else None
            self._ends(allocation_id, fields.get("name", ""), at, verdict)
        elif event == "lost":
            self._ends(allocation_id, fields.get("name", ""), at, False)
        elif event in _NEUTRAL:
            self._ends(allocation_id, fields.get("name", ""), at, None)

    def counts(self, name: str, since: float, *, probes: bool = False) -> Counts:
        """How tasks of ``name`` have ended since; with ``probes``, only those that were granted since, too."""
        known = self._names.get(name)
        if known is None:
            return Counts()
        counted = [well for end, granted, well in known.ended if end >= since and (not probes or granted >= since)]
        flying = sum(1 for granted in known.flying.values() if granted >= since) if probes else 0
        return Counts(sum(counted), len(counted) - sum(counted), flying)

    @property
    def names(self) -> list[str]:
        """Every name of which something is known."""
        return list(self._names)

    def forget(self, before: float) -> None:
        """Endings before that time do not matter any more; names of which nothing is left are dropped."""
        for name, known in list(self._names.items()):
            while known.ended and known.ended[0][0] < before:
                known.ended.popleft()
            if not known.ended and not known.flying:
                del self._names[name]

    def _ends(self, allocation_id: str, name: str, at: float, well: bool | None) -> None:
        name = self._name_of.pop(allocation_id, name)
        if not name:
            return
        granted = self._names[name].flying.pop(allocation_id, at)
        if well is not None:
            self._names[name].ended.append((at, granted, well))
