"""A message comes out of the ledger as it went in."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.plugin.envelope import Envelope

text = st.text(st.characters(codec="utf-8"), max_size=20)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | text
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


@given(
    st.builds(
        Envelope,
        body=st.binary(max_size=200),
        content_type=st.sampled_from(["application/json", "application/x-python-serialize", "application/data"]),
        content_encoding=st.sampled_from(["utf-8", "binary"]),
        headers=st.dictionaries(text, values, max_size=4),
        properties=st.dictionaries(text, values, max_size=4),
        delivery_mode=st.none() | st.sampled_from([1, 2, "transient"]),
    )
)
def test_round_trip(envelope: Envelope) -> None:
    """Whatever stands in the headers; the body is bytes, with newlines and zeros, and is never opened."""
    assert Envelope.unpack(envelope.pack()) == envelope


def test_what_kombu_can_say_in_json_stays_what_it_is() -> None:
    """Headers of the user's may hold a time."""
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    envelope = Envelope(b"", "application/json", "utf-8", {"when": when}, {}, None)
    assert Envelope.unpack(envelope.pack()).headers["when"] == when


@pytest.mark.parametrize("data", [b"", b"{}", b"{}\n", b"[]\n", b'{"v": 2}\n', b"\x00\n\x00", b'{"v": 1, "ct'])
def test_anything_else_is_refused(data: bytes) -> None:
    """Another version, or no message at all."""
    with pytest.raises(ValueError):  # noqa: PT011  # json's own error is one
        Envelope.unpack(data)
