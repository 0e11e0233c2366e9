"""One entry of the event stream as the history takes it: texts that any database keeps, and times.

An entry that is damaged becomes one that says less; none stops the recorder.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: The last millisecond of the year 9999.
_LAST_MS = 253_402_300_799_999
_SEQUENCE_BITS = 20
_LAST_SEQUENCE = (1 << _SEQUENCE_BITS) - 1
#: Characters of a name that is indexed; the ledger's own are shorter (see ``model/label.py``).
_NAME_LENGTH = 512


class Entry(NamedTuple):
    """``event_id``: "ms-seq"; ``at``: by the ledger's clock; ``object_id``: its ``id``; ``fields``: the rest."""

    event_id: str
    event: str
    at: datetime
    object_id: str
    task_id: str
    fields: dict[str, str]

    def number(self, name: str, limit: int = 2**31) -> int | None:
        """A field as a whole number below ``limit``; ``None`` if it is not there or none."""
        return whole(self.fields.get(name), limit)

    def time(self, name: str) -> datetime | None:
        """A field in milliseconds since the epoch as a time."""
        return moment(self.fields.get(name))


def parse(event_id: str, fields: Mapping[str, str]) -> Entry:
    """An entry from what the stream holds."""
    texts = dict(fields)
    if any("\0" in text for pair in fields.items() for text in pair):  # PostgreSQL keeps none in a text
        texts = {name.replace("\0", "\ufffd"): value.replace("\0", "\ufffd") for name, value in fields.items()}
    at = moment(texts.pop("at", None)) or moment(event_id.partition("-")[0]) or _EPOCH
    names = [texts.pop(name, "")[:_NAME_LENGTH] for name in ("event", "id", "task")]
    if "name" in texts:
        texts["name"] = texts["name"][:_NAME_LENGTH]
    return Entry(event_id, names[0], at, names[1], names[2], texts)


def ordinal(event_id: str) -> int:
    """An entry's id as one number that sorts as the stream does."""
    ms, _, sequence = event_id.partition("-")
    return (int(ms) << _SEQUENCE_BITS) + min(int(sequence or 0), _LAST_SEQUENCE)


def moment(ms: str | None) -> datetime | None:
    """Milliseconds since the epoch as a time; ``None`` for what is none."""
    value = whole(ms, _LAST_MS + 1)
    return None if value is None or value < 0 else _EPOCH + timedelta(milliseconds=value)


def whole(text: str | None, limit: int = 2**31) -> int | None:
    """A whole number whose absolute value is below ``limit``; ``None`` for what is none."""
    # Longer texts are no number of ours, and slow to convert.
    if not text or len(text) > 20:
        return None
    try:
        value = int(text)
    except ValueError:
        return None
    return value if -limit < value < limit else None
