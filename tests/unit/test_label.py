"""Ids and names that the ledger records are short, printable text."""

from __future__ import annotations

from typing import Any

import pytest

from celery_allocator.errors import LabelError
from celery_allocator.model import MAX_LABEL, label


@pytest.mark.parametrize("value", ["a", "proj.tasks.infer", "grüße, 世界 🚀", "x" * MAX_LABEL, "two words"])
def test_text_is_taken_as_it_is(value: str) -> None:
    assert label("task id", value) is value


@pytest.mark.parametrize("value", ["", "  ", "x" * (MAX_LABEL + 1), "a\nb", "a\0b", "\x1b[31m", "\ud800", "a\u2028b"])
def test_what_would_break_keys_or_output_is_refused(value: str) -> None:
    """Line ends, NUL, escape sequences of terminals, halves of surrogate pairs; empty; too long."""
    with pytest.raises(LabelError, match=f"task id=.*1 to {MAX_LABEL} printable"):
        label("task id", value)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(LabelError, match="must be text"):
        label("task id", value)


def test_some_places_have_no_room_for_some_characters() -> None:
    """A node's name holds no slash; a UUID may be unknown."""
    with pytest.raises(LabelError, match="must not contain '/'"):
        label("node", "a/b", without="/ ")
    assert label("UUID", "", empty=True) == ""
