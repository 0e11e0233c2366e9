"""Every key of the ledger, spelled here and nowhere else.

A ledger lives under one prefix with one hash tag, ``{allocator:<pool>}:``, so that Redis Cluster keeps it on one shard.
Scripts get the prefix as ``KEYS[1]`` and write ``K.<name>``; :func:`render` replaces each by the key's expression, and
refuses a name that is not in the table. Names that end in ``:`` are families: the script appends a member's name.
"""

from __future__ import annotations

import re

#: Version of what the keys hold. A worker refuses a ledger of another one.
SCHEMA = 5

#: name in Lua → (suffix, type, meaning)
KEYS: dict[str, tuple[str, str, str]] = {
    "meta": (
        "meta",
        "hash",
        "schema; counters seq (tokens), arr (arrivals), ord (devices); all_…: what nodes offer; run of the server, …",
    ),
    "alloc": ("a:", "hash family", "one allocation, by its id, with its message until it ends"),
    "tomb": ("t:", "string family", "outcome of an ended allocation for two minutes, so that a repeated call is known"),
    "tasks": ("tasks", "hash", "task id → its live allocation ids, comma-separated (a retry overlaps its predecessor)"),
    "waiting": ("waiting", "zset", "allocations in line; score = arrival − priority · what a point of it is worth"),
    "line": ("q:", "zset family", "the same, one per lane: shape/pace/tenant"),
    "turn": ("turn:", "zset family", "lanes of a tenant that have waiters; score = that of the first in it"),
    "shapes": ("shapes", "zset", "shapes that have waiters; score = number of their lanes"),
    "queued": ("queued", "set", "tenants that have waiters"),
    "used": ("used", "hash", "tenant → what it holds: GPU MB, cores, RAM MB, allocations"),
    "quotas": ("quotas", "hash", "tenant → its weight and caps, JSON"),
    "forecast": ("forecast", "string", "the last forecast of what waits, for a second"),
    "dates": ("dates", "hash", "how good the dates were that were given to what waits, by length of the wait"),
    "reserved": ("reserved", "hash", "what is kept for the first in line that does not fit: who, where, when at last"),
    "patient": ("patient:", "zset family", "what waits of a lane with an affinity; score = since when, in ms"),
    "patience": (
        "patience",
        "zset",
        "lanes that wait for where their affinity is loaded; score = until when, in ms; below zero: that is over",
    ),
    "delayed": ("delayed", "zset", "allocations whose ETA lies ahead; score = ETA in ms"),
    "onhold": ("onhold", "zset", "allocations that are on hold: they keep their place; score = since when, in ms"),
    "expires": ("expires", "zset", "allocations with an expiry that have not started; score = expiry in ms"),
    "held": ("held", "zset", "allocations that hold resources; score = when granted, in ms"),
    "granted": ("granted", "zset", "task allocations granted and not started; score = when to publish again, in ms"),
    "manual": ("manual", "zset", "allocations made by hand; score = end of their TTL, in ms"),
    "obits": ("obits", "zset", "tasks that ended without running to their end and whose result is still to be written"),
    "parked": (
        "parked",
        "zset",
        "allocations whose message cannot be read, for an operator; score = when, in ms",
    ),
    "nodes": ("nodes", "zset", "nodes; score = end of their lease, in ms"),
    "known": ("known", "set", "every node ever registered and not forgotten"),
    "node": (
        "node:",
        "hash family",
        "one node: its core map, RAM, what is withheld of it, and what is free on each of its devices",
    ),
    "dev": (
        "dev:",
        "hash family",
        "one device (or the node's pseudo-device cpu): memory, slots, worker; what is withheld of it, and why",
    ),
    "on": ("on:", "set family", "allocations that hold a device"),
    "warm": ("warm:", "zset family", "devices where an affinity is loaded, by its word; score = when last used, in ms"),
    "workers": ("workers", "zset", "workers; score = end of their lease, in ms"),
    "worker": (
        "worker:",
        "hash family",
        "one worker: incarnation, device, pid; run of the server, number of its last report, doubt, what it measured",
    ),
    "index": ("ix:", "zset family", "devices by free memory and cores: ix:sched, ix:idle"),
    "order": ("ff:", "zset family", "devices in stable order, one set per power of two of free memory"),
    "classes": ("classes", "hash", "capacity classes of known devices, memory:cores:ram → how many"),
    "runtimes": ("runtimes", "hash", "task name (and size) → histogram of its run times; * for all"),
    "peaks": ("peaks", "hash", "task name (and size) → what its runs used: declared, most, and a histogram of each"),
    "demand": (
        "demand",
        "zset",
        "shapes asked for under strategy fgd, memory:cores:GPUs; score = how often lately",
    ),
    "journal": ("journal", "zset", "numbers of the operator actions that are remembered"),
    "entry": ("j:", "hash family", "one operator action: who, when, why, before, after; what it takes to undo it"),
    "once": ("once:", "string family", "idempotency key of an operator action → its entry, for a week"),
    "answer": (
        "answer:",
        "string family",
        "reply to a call of an operator, for two minutes, so that a repeated one gets it",
    ),
    "breakers": ("breakers", "hash", "task name → how many more may be granted, where its breaker is not closed"),
    "breaker": ("breaker", "hash", "task name → what the keeper of its breaker remembers, JSON"),
    "aside": ("aside:", "zset family", "allocations that a task name's breaker has set aside; score = place in line"),
    "own": ("own:", "zset family", "allocations of an owner (an agent's token, say); score = when noted, in ms"),
    "rejected": ("rejected", "hash", "why the gate refused deliveries → how often"),
    "events": ("events", "stream", "one entry per mutation, capped"),
    "duty": ("duty:", "string family", "who has a duty that one worker has at a time"),
    "tick": ("tick", "string", "the maintenance lock"),
    "updates": ("updates", "stream", "updates from others that are not answered yet; also the name of a channel"),
    "updated": ("u:", "string family", "idempotency key of an update → what it means and its reply, for a week"),
    "replies": ("updates:replies", "stream", "one reply per update, capped"),
    "refused": ("updates:parked", "stream", "updates that could not be read, for an operator, capped"),
    "changes": (
        "changes",
        "stream",
        "the event stream in the form of updates, under the same ids, capped; also the name of a channel",
    ),
}

_REFERENCE = re.compile(r"\bK\.(\w+)")


def prefix(pool: str) -> str:
    """Prefix of every key of a pool, hash tag included."""
    return f"{{allocator:{pool}}}:"


def key(pool: str, name: str, member: str = "") -> str:
    """One whole key, as tests and tools read it."""
    return prefix(pool) + KEYS[name][0] + member


def render(source: str) -> str:
    """Lua source with each ``K.<name>`` replaced by that key's expression. Raises ``KeyError`` on an unknown name.

    The expression has no parentheses: ``K.dev .. name`` is then one concatenation and not two.
    """
    return _REFERENCE.sub(lambda match: f'P.."{KEYS[match.group(1)][0]}"', source)
