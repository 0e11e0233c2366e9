"""A message record read back from the ledger: an envelope, or a ``ValueError``."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from celery_allocator.plugin.envelope import HEADER, Envelope, head
from tests.fuzz.material import FUZZ, documents, text

REAL = Envelope(
    b'[[1], {"k": 2}, {}]',
    "application/json",
    "utf-8",
    {HEADER: {"id": "alloc_1", "resources": {"cpu_cores": 1}}, "id": "t", "task": "proj.work", "eta": None},
    {"priority": 0, "reply_to": "r"},
    2,
)
PACKED = REAL.pack()


def read(data: bytes) -> None:
    """Read ``data``; what comes back can be published: every part has its type."""
    try:
        envelope = Envelope.unpack(data)
    except ValueError:
        return
    assert isinstance(envelope.body, bytes)
    assert isinstance(envelope.content_type, str)
    assert isinstance(envelope.content_encoding, str)
    assert isinstance(envelope.properties, dict)
    assert isinstance(envelope.headers, dict)
    assert isinstance(envelope.headers[HEADER], dict)
    assert isinstance(envelope.headers["id"], str)
    assert isinstance(envelope.headers["task"], str)


@FUZZ
@given(st.binary(max_size=200))
@example(b', "x": ' + b"[" * 100_000)
@example(b', "x": ' + b'{"a":' * 100_000)
@example(b', "x": ' + b"9" * 10_000 + PACKED)
@example(b', "x": {"__type__": "datetime", "__value__": "no"}' + PACKED)
def test_any_bytes(data: bytes) -> None:
    read(data)


@FUZZ
@given(st.integers(0, len(PACKED)), st.integers(0, 40), st.binary(max_size=40))
def test_a_real_one_with_a_part_replaced(at: int, length: int, other: bytes) -> None:
    read(PACKED[:at] + other + PACKED[at + length :])


def _paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(found for key, part in inner for found in _paths(part, (*path, key)))]


FRONT = head("") + "0"
WHOLE = json.loads(FRONT + PACKED.decode())
PATHS = [path for path in _paths(WHOLE) if path and path[:3] != ("headers", HEADER, "token")]


@FUZZ
@given(
    st.sampled_from(PATHS), documents | st.dictionaries(st.sampled_from(["__type__", "__value__"]), text | documents)
)
def test_a_real_one_with_a_value_of_another_type(path: tuple[str, ...], value: Any) -> None:
    """Well-formed JSON, wrong inside."""
    message = json.loads(FRONT + PACKED.decode())
    place = message
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        written = json.dumps(message)
    except ValueError:  # a number of more digits than Python writes
        return
    if written.startswith(FRONT):
        read(written[len(FRONT) :].encode())


@FUZZ
@given(st.sampled_from(PATHS))
def test_a_real_one_with_a_part_missing(path: tuple[str, ...]) -> None:
    message = json.loads(FRONT + PACKED.decode())
    place = message
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    written = json.dumps(message)
    if written.startswith(FRONT):
        read(written[len(FRONT) :].encode())
