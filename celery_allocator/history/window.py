"""Stretches of time: ``15m``, ``2d``, or from a moment on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
#: What a length of time looks like, for messages.
LENGTHS = "a length of time such as 90s, 15m, 1h, 2d or 1w"
_LONGEST_S = 10**10

#: What callers may say for a moment: text, seconds ago, a length of time ago, or the moment itself.
When = str | float | timedelta | datetime


@dataclass(frozen=True)
class Window:
    """From ``start`` (included) to ``end`` (not included), in UTC."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start).total_seconds()

    @property
    def start_s(self) -> float:
        """``start`` in seconds since the epoch."""
        return self.start.timestamp()

    @property
    def end_s(self) -> float:
        """``end`` in seconds since the epoch."""
        return self.end.timestamp()

    def holds(self, at: datetime | None) -> bool:
        """Whether a moment lies in it."""
        return at is not None and self.start <= at < self.end

    def __str__(self) -> str:
        return f"{_iso(self.start)} to {_iso(self.end)}"


def length(text: str) -> timedelta:
    """``"90s"`` → 90 seconds. Raises :class:`ValueError` saying what is expected."""
    match = _LENGTH.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"{text!r} is not {LENGTHS}")
    return timedelta(seconds=seconds)


def moment(when: When, now: datetime) -> datetime:
    """The moment that ``when`` means: a text (a length before ``now``, or ISO 8601), seconds before now, or itself.

    A moment without a time zone is in UTC. Raises :class:`ValueError` saying what is expected.
    """
    try:
        if isinstance(when, datetime):
            return utc(when)
        if isinstance(when, timedelta):
            return now - when
        if isinstance(when, (int, float)):
            return now - timedelta(seconds=when)
        if _LENGTH.fullmatch(when.strip()):
            return now - length(when)
        return utc(datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", when.strip())))
    except (ValueError, OverflowError):
        raise ValueError(f"{when!r} is neither {LENGTHS} nor a moment such as 2026-01-31T12:00:00Z") from None


def utc(at: datetime) -> datetime:
    """``at`` in UTC; without a time zone it is taken to be so already."""
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
