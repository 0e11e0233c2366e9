"""What Hypothesis makes input from, and how the tests see that a ledger has not changed.

``FUZZ_EXAMPLES`` sets how many inputs each test tries.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from celery_allocator.ledger import Ledger, keys
from celery_allocator.model import FIELDS

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: Any text, with NUL, line ends and halves of surrogate pairs, which JSON can spell and no encoding can hold.
text = st.text(st.characters(), max_size=30) | st.sampled_from(["", "a\0b", "a\nb", "\ud800", "x" * 300, "-1", "nan"])
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 2**53, 1e308, True])
leaves = st.none() | st.booleans() | numbers | text
#: Whatever a JSON document can hold, infinities included.
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
#: Whatever a caller in Python can give.
objects = (
    documents | st.binary(max_size=9) | st.just(object()) | st.tuples(numbers) | st.sets(st.integers(), max_size=2)
)
#: Mappings that are nearly requirements: known keys as often as others.
needs = st.dictionaries(st.sampled_from([*FIELDS]) | text, st.integers(-2, 9) | objects, max_size=5)


def state(ledger: Ledger) -> dict[bytes, Any]:
    """Everything the pool holds, byte by byte, but for the maintenance lock and when maintenance last ran."""
    lock, meta = (keys.key(ledger.pool, name).encode() for name in ("tick", "meta"))
    names = [name for name in ledger.client.scan_iter(f"{keys.prefix(ledger.pool)}*", count=1000) if name != lock]
    found: dict[bytes, Any] = {name: ledger.client.dump(name) for name in sorted(names)}
    if meta in found:
        found[meta] = {k: v for k, v in ledger.client.hgetall(meta).items() if k not in (b"alive", b"audited")}
    return found
