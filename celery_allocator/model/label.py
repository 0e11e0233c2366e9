"""What may stand in the ledger as an id or a name: it becomes part of keys, events, queues and listings."""

from __future__ import annotations

from typing import Any

from celery_allocator.errors import LabelError

#: Longest id or name, in characters.
MAX_LABEL = 255


def label(key: str, value: Any, *, without: str = "", empty: bool = False) -> str:
    """``value`` if it is printable text of 1 to 255 characters with none of those in ``without``.

    ``empty``: no characters at all are fine too. Raises :class:`LabelError` naming ``key``, the value and the rule.
    Called for every submission: the usual case is three calls that do not look at each character in Python.
    """
    if type(value) is not str and not isinstance(value, str):
        raise LabelError(key, value, f"must be text, not {type(value).__name__}")
    # Not printable are control characters, line ends, NUL, and halves of surrogate pairs, which no encoding can hold.
    if len(value) > MAX_LABEL or not value.isprintable() or not (empty or value.strip()):
        raise LabelError(key, value, f"must be 1 to {MAX_LABEL} printable characters")
    for character in without:
        if character in value:
            raise LabelError(key, value, f"must not contain {character!r}")
    return value
