"""How far a start was from what was promised at submit: the same for reports, the gate and the metrics.

As the ledger scores its dates (``_dates.lua``): only what had to wait and was promised a start, and was not put on
hold, moved or given another priority meanwhile, for then the promise was void.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """A promise and its start. ``error_s``: actual less estimated start (negative: earlier); ``covered``: by its p90.

    ``covered`` is ``None`` where no p90 was told: that was recorded by an older version.
    """

    error_s: float
    covered: bool | None


def kept(row: Any) -> Kept | None:
    """What came of the promise that a row tells (a record does, too); ``None``: none, or it has not started yet."""
    if (
        row.wait_s is None
        or row.submitted_at is None
        or row.estimated_start_at is None
        or row.rearranged_at is not None
    ):
        return None
    ready = _utc(row.submitted_at)
    if row.eta_at is not None:
        ready = max(ready, _utc(row.eta_at))
    started = ready + timedelta(seconds=row.wait_s)
    p90 = row.estimated_start_p90_at
    return Kept((started - _utc(row.estimated_start_at)).total_seconds(), None if p90 is None else started <= _utc(p90))


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at
