"""A message comes out of the ledger as it went in."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection

from celery_allocator.plugin.envelope import HEADER, Envelope, head, own_header

text = st.text(st.characters(codec="utf-8"), max_size=20)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | text
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))

headers = st.builds(
    lambda allocation, others: {
        **others,
        HEADER: {"id": allocation, "resources": {"gpu_memory_mb": 1}},
        "id": "t",
        "task": "work",
    },
    text,
    st.dictionaries(text, values, max_size=4),
)


@given(
    st.builds(
        Envelope,
        body=st.binary(max_size=200),
        content_type=st.sampled_from(["application/json", "application/x-python-serialize", "application/data"]),
        content_encoding=st.sampled_from(["utf-8", "binary"]),
        headers=headers,
        properties=st.fixed_dictionaries({"priority": st.integers(0, 9)}, optional={"reply_to": text, "x": values}),
        delivery_mode=st.none() | st.sampled_from([1, 2, "transient"]),
    )
)
def test_round_trip(envelope: Envelope) -> None:
    """Whatever stands in the headers; the body is bytes, with newlines and zeros, and is never opened."""
    assert Envelope.unpack(envelope.pack()) == envelope


def test_what_kombu_can_say_in_json_stays_what_it_is() -> None:
    """Headers of the user's may hold a time."""
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    envelope = Envelope(
        b"", "application/json", "utf-8", {HEADER: {"id": "a"}, "id": "t", "task": "work", "when": when}, {}, None
    )
    assert Envelope.unpack(envelope.pack()).headers["when"] == when


def test_behind_its_head_and_token_it_is_a_message_of_kombus() -> None:
    """As the ledger delivers it into a list of its own server: read by kombu's own channel."""
    envelope = Envelope(b"[1]", "application/json", "utf-8", {HEADER: {"id": "a"}, "id": "t"}, {"reply_to": "r"}, 2)
    raw = json.loads(head('a"queue') + "7" + envelope.pack().decode())
    with Connection("memory://") as connection:
        message = connection.default_channel.message_to_python(raw)
    assert (message.body, message.content_type, message.content_encoding) == (b"[1]", "application/json", "utf-8")
    assert message.headers == {HEADER: {"queue": 'a"queue', "token": 7, "id": "a"}, "id": "t"}
    assert (message.properties["priority"], message.properties["reply_to"]) == (0, "r")
    assert message.payload == [1]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"}", b"}}}", b', "id": "a"}}', b', "id": "a"}, "properties": 1}', b"\x00\xff", b', "i']
)
def test_anything_else_is_refused(data: bytes) -> None:
    """Another version, or no message at all."""
    with pytest.raises(ValueError):  # noqa: PT011  # json's own error is one
        Envelope.unpack(data)


@pytest.mark.parametrize(
    "headers", [None, {}, {HEADER: "theirs"}, {HEADER: {"resources": 1}}, {HEADER: {"id": 7}}, [1]]
)
def test_a_users_own_header_of_that_name_is_left_alone(headers: object) -> None:
    """It is not ours unless it names an allocation."""
    assert own_header(headers) == {}


def test_our_header_is_found() -> None:
    assert own_header({HEADER: {"id": "alloc_1", "token": 3}}) == {"id": "alloc_1", "token": 3}
