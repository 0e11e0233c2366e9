"""What the outcomes of allocations mean: whether it went well, wrong, or neither."""

from __future__ import annotations

SUCCESS = frozenset({"success"})
#: Outcomes that say that a task went wrong.
FAILURES = frozenset({"failure", "lost", "unreported", "parked", "rejected"})
#: It will be run again, by its own wish.
RETRY = "retry"
#: Neither: nobody is to blame.
OTHERS = frozenset({"cancelled", "ended", "expired", "ignored", "released", "revoked", "ttl", RETRY})
KNOWN = SUCCESS | FAILURES | OTHERS
