"""The ledger: one Python method per Lua script, values in and values out.

Times cross this line as seconds since the epoch on the ledger's own clock; inside the scripts they are milliseconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from celery_allocator.errors import (
    ActionRefused,
    AllocationNotFound,
    PoolFullError,
    StaleTokenError,
)
from celery_allocator.ledger import keys, replies, wire
from celery_allocator.ledger.access import ms
from celery_allocator.ledger.announcer import SHORTEST_PAUSE_MS
from celery_allocator.ledger.following import Following
from celery_allocator.ledger.foretelling import Foretelling
from celery_allocator.ledger.journal import Note, number
from celery_allocator.ledger.mending import Mending
from celery_allocator.ledger.owning import Owning
from celery_allocator.ledger.recommending import Recommending
from celery_allocator.ledger.replies import (
    REFUSALS,
    Available,
    Cancelled,
    Line,
    Obituary,
    Released,
    Submitted,
    Ticked,
)
from celery_allocator.ledger.serving import Serving
from celery_allocator.ledger.tenancy import Tenancy
from celery_allocator.ledger.updating import Updating, texts
from celery_allocator.model import (
    KIND_CODES,
    Allocation,
    ClusterState,
    Kind,
    NodeState,
    Peaks,
    Requirements,
    Shape,
    Strategy,
    label,
    more_of,
)

#: Places in line that one script looks at: it holds up the server for a few milliseconds.
_STRETCH = 2500


def new_allocation_id() -> str:
    """A fresh allocation id, ``alloc_`` and 32 hexadecimal digits."""
    return f"alloc_{uuid.uuid4().hex}"


class Ledger(Serving, Mending, Tenancy, Owning, Following, Updating, Foretelling, Recommending):
    """One pool's ledger on one Redis or Valkey server (see :class:`Access` for how it is made).

    Every method raises :class:`~celery_allocator.errors.LedgerUnavailable` when the server cannot be reached, or cannot
    serve for now, and :class:`~celery_allocator.errors.LedgerError` when it refuses.
    """

    # --- the life of an allocation

    def submit(
        self,
        allocation_id: str,
        task_id: str,
        task_name: str,
        requirements: Requirements,
        *,
        strategy: Strategy = Strategy.BEST_FIT,
        kind: Kind = Kind.TASK,
        message: bytes = b"",
        eta_at: float | None = None,
        expires_at: float | None = None,
        ttl_s: float | None = None,
        on_never: str = "raise",
        note: Note | None = None,
    ) -> Submitted:
        """Submit one allocation; it comes back granted, waiting or delayed. Safe to repeat under the same id.

        Raises :class:`UnsatisfiableError` (with ``on_never="raise"``) if no known device could ever hold it; where no
        device is known yet, it waits. Raises :class:`LabelError` for an id or a name that cannot be recorded,
        :class:`PoolFullError` if it would have to wait and as many wait as may.
        """
        req = requirements
        reply = self._noted(
            note,
            "submit",
            label("allocation id", allocation_id, without=", "),
            label("task id", task_id),
            label("task name", task_name),
            req.gpu_memory_mb,
            req.cpu_cores,
            req.ram_mb,
            req.priority,
            strategy.value,
            KIND_CODES[kind],
            message,
            ms(eta_at),
            ms(expires_at),
            ms(self.options.ttl_s if ttl_s is None else ttl_s),
            on_never,
            self.options.max_waiting,
            req.tenant,
            self._pack(note),
            req.size,
            req.expected_runtime_s * 1000 or "",
            req.gpu_count,
            more_of(req),
        )
        verdict = reply[0].decode()
        if verdict == "known":
            return self._submitted_before(allocation_id, reply[1].decode())
        if verdict == "never":
            raise replies.never(req, reply)
        if verdict == "full":
            raise PoolFullError(self.pool, int(reply[1]), self.options.max_waiting)
        asked = {
            "allocation_id": allocation_id,
            "task_id": task_id,
            "task_name": task_name,
            "kind": kind,
            "requirements": req,
            "strategy": strategy,
            "eta_at": eta_at,
            "expires_at": expires_at,
        }
        return wire.submitted(asked, verdict, reply, Submitted, Available)

    @wire.reads("the allocation")
    def start(
        self, allocation_id: str, token: int, worker: str, incarnation: str, nonce: str, repeatable: bool
    ) -> Allocation:
        """A worker is about to run a granted task. Succeeds once per grant.

        ``nonce`` names the delivery, so that a call whose reply was lost may be repeated. ``repeatable``: the task may
        be granted again should its worker be lost (``acks_late``). Raises :class:`StaleTokenError` with the reason.
        """
        reply = self._run("start", allocation_id, token, worker, incarnation, nonce, "1" if repeatable else "0")
        if reply[0] != b"ok":
            raise StaleTokenError(f"{allocation_id}: {reply[1].decode()}")
        return wire.allocation(reply[1])

    def release(
        self,
        allocation_id: str,
        token: int | None = None,
        outcome: str = "released",
        *,
        error: str = "",
        peaks: Peaks | None = None,
        publishes: bool = True,
        note: Note | None = None,
    ) -> Released:
        """Give back what an allocation holds, once; a second call, or one with an old token, changes nothing.

        ``outcome``: ``success`` feeds the run-time estimate; ``requeue`` puts the task back into line; any other word
        is recorded. ``error``: the class of the exception a task failed with, recorded along. ``peaks``: what the run
        used, recorded along, and learned from a ``success``. ``publishes``: the caller publishes the returned grants;
        else the next tick does. With a ``note`` only what was made by hand: raises
        :class:`ActionRefused` for a task.
        """
        reply = self._noted(
            note,
            "release",
            allocation_id,
            "" if token is None else token,
            outcome,
            self.options.runtime_decay,
            "1" if publishes else "0",
            self._pack(note),
            error,
            "" if peaks is None else peaks.to_wire(),
        )
        verdict = reply[0].decode()
        if verdict == "not_by_hand":
            task = _text(reply[1])
            raise ActionRefused(f"{allocation_id} belongs to task {task}: its worker releases it")
        if verdict != "ok":
            return Released(False, f"{verdict}: {_text(reply[1])}")
        return Released(True, outcome, replies.grants(reply[1]), number(reply[2]))

    @wire.reads("the allocation")
    def cancel(
        self,
        allocation_id: str,
        outcome: str = "cancelled",
        *,
        only_waiting: bool = False,
        publishes: bool = True,
        note: Note | None = None,
    ) -> Cancelled:
        """End an allocation that has not started, or one made by hand. A running task is left alone.

        ``only_waiting``: only if it has not been granted.
        """
        only, packed = "waits" if only_waiting else "", self._pack(note)
        reply = self._noted(note, "cancel", allocation_id, outcome, "1" if publishes else "0", packed, only)
        if reply[0] != b"ok":
            return Cancelled(False, reply[0].decode())
        _, state, task_id, name, message, grants, entry = reply
        obituary = Obituary(allocation_id, task_id.decode(), name.decode(), outcome, message) if message else None
        return Cancelled(True, state.decode(), obituary, replies.grants(grants), number(entry))

    def renew(self, allocation_id: str, ttl_s: float, token: int | None = None) -> Allocation:
        """Let an allocation made by hand live ``ttl_s`` seconds from now.

        Raises :class:`AllocationNotFound` if it has ended (or belongs to a task), :class:`StaleTokenError`.
        """
        reply = self._run("renew", allocation_id, ms(ttl_s), "" if token is None else token)
        verdict = reply[0].decode()
        if verdict == "stale":
            raise StaleTokenError(f"{allocation_id}: token {token} is not the live one ({_text(reply[1])})")
        if verdict == "not_manual":
            raise AllocationNotFound(f"{allocation_id} belongs to a task: its worker renews it")
        if verdict == "gone":
            raise AllocationNotFound(f"{allocation_id} has ended or never was")
        return self.get(allocation_id)

    def note_overuse(
        self, allocation: Allocation, resource: str, *, promised_mb: int, used_mb: int, action: str
    ) -> bool:
        """Note that a running task uses more than it was promised, in MB; False if it does not run any more so.

        ``resource``: ``gpu_memory_mb`` or ``ram_mb``; ``action``: what its worker does, ``warn`` or ``kill``.
        """
        a = allocation
        return bool(self._run("overuse", a.allocation_id, a.token, resource, promised_mb, used_mb, action))

    def settle(self, allocation_ids: Iterable[str]) -> int:
        """The results of these ended tasks have been written; returns how many records were forgotten."""
        ids = list(allocation_ids)
        return int(self._run("settle", *ids)) if ids else 0

    # --- reading

    def get(self, allocation_id: str) -> Allocation:
        """One live allocation. Raises :class:`AllocationNotFound`."""
        found = self._find("id", allocation_id)
        if not found:
            raise AllocationNotFound(f"no live allocation {allocation_id!r}: it has ended or never was")
        return found[0]

    def find(self, task_id: str) -> tuple[Allocation, ...]:
        """The live allocations of a task (two while a retry overlaps the run it replaces)."""
        return self._find("task", task_id)

    def named(self, which: str) -> tuple[Allocation, ...]:
        """The live allocation of that id, else those of the task of that id. Raises :class:`AllocationNotFound`."""
        try:
            return (self.get(which),)
        except AllocationNotFound:
            found = self.find(which)
        if not found:
            raise AllocationNotFound(f"no live allocation or task {which!r}: it has ended or never was")
        return found

    def queue(self, limit: int = 100, offset: int = 0, *, by_turns: bool = True) -> tuple[Allocation, ...]:
        """Waiting allocations with position and estimated start.

        Pages follow each other by priority and arrival. Where several tenants wait, whose turns follow their shares,
        the allocations of one page are in the order of their turns, unless ``by_turns`` is off.
        """
        found = self._find("waiting", offset, limit)
        return tuple(sorted(found, key=lambda a: a.queue_position)) if by_turns else found

    def search(
        self, text: str = "", tenant: str = "", limit: int = 100, offset: int = 0
    ) -> tuple[int, int, tuple[Allocation, ...]]:
        """Look for what waits: how many wait, how many are meant, and ``limit`` of these from the ``offset``-th on.

        ``text``: part of a task's name, of its id or of the allocation's id, capital letters (A to Z) or small.
        """
        small = "".join(letter.lower() if letter.isascii() else letter for letter in text)
        places = meant = 0
        found: list[Allocation] = []
        while True:
            left = (max(0, offset - meant), limit - len(found))
            looked, some, rows = self._run("search", small, tenant, places, _STRETCH, *left)
            places, meant = places + int(looked), meant + int(some)
            found += [wire.allocation(row) for row in rows]
            if int(looked) < _STRETCH:
                return places, meant, tuple(found)

    def delayed(self, limit: int = 100, offset: int = 0) -> tuple[Allocation, ...]:
        """Delayed allocations by ETA."""
        return self._find("delayed", offset, limit)

    def on_hold(self, limit: int = 100, offset: int = 0) -> tuple[Allocation, ...]:
        """Allocations on hold by the time they were put there."""
        return self._find("on_hold", offset, limit)

    def held(self, limit: int = 100_000, offset: int = 0) -> tuple[Allocation, ...]:
        """Granted and running allocations by the time of their grant."""
        return self._find("held", offset, limit)

    def still_held(self, allocation_ids: Iterable[str]) -> set[str]:
        """Which of these allocations hold resources."""
        ids = list(allocation_ids)
        if not ids:
            return set()
        scores: Any = self._guard(self.client.execute_command, "ZMSCORE", keys.key(self.pool, "held"), *ids)
        return {i for i, score in zip(ids, scores, strict=True) if score is not None}

    def snapshot(self) -> ClusterState:
        """The whole pool at one instant."""
        return wire.cluster(self.pool, self._run("snapshot"))

    def node(self, name: str) -> NodeState | None:
        """One node as the snapshot would tell it; ``None`` if there is none of that name."""
        nodes = wire.cluster(self.pool, self._run("snapshot", name)).nodes
        return nodes[0] if nodes else None

    @wire.reads("a node")
    def room(self) -> Available:
        """What is free on the device that has most, by GPU memory, then cores; zeros if none takes work."""
        return Available(*(int(amount) for amount in self._run("room")))

    @wire.reads("the line")
    def line(self, shapes: int = 1000) -> Line:
        """Who waits, in figures; of at most ``shapes`` shapes."""
        now, waiting, since, rows, refused = self._run("line", shapes, *REFUSALS)
        counts = zip(rows[::2], rows[1::2], strict=True)
        known = {shape: int(n) for text, n in counts if (shape := Shape.parse(text.decode())) is not None}
        rejected = {reason: int(n or 0) for reason, n in zip(REFUSALS, refused, strict=True)}
        return Line(int(now) / 1000, int(waiting), int(since) / 1000 if since else None, known, rejected)

    def events(self, since: str = "-", count: int = 1000) -> list[tuple[str, dict[str, str]]]:
        """Entries of the event stream after ``since`` (an entry's id, or ``-`` for the oldest)."""
        return [(at, texts(row)) for at, row in self._range("events", since, count)]

    def newest_events(self, count: int = 1000) -> list[tuple[str, dict[str, str]]]:
        """The latest ``count`` entries of the event stream, in its order."""
        rows: Any = self._guard(self.client.xrevrange, keys.key(self.pool, "events"), "+", "-", count)
        return [(at.decode(), texts(row)) for at, row in reversed(rows)]

    # --- maintenance

    @wire.reads("a worker")
    def tick(
        self, *, lock_s: float | None = None, batch: int = 500, publishes: bool = True, away_s: float | None = 0.0
    ) -> Ticked:
        """One step of maintenance (see ``tick.lua``); with ``lock_s``, at most once in that time over all callers.

        ``publishes``: the caller publishes the grants and writes the results of the obituaries; else others will.
        ``away_s``: seconds for which the caller could not reach the server; where nobody else could either, leases are
        put off by as much. ``None``: the caller has just begun and cannot know; a worker that has not been heard while
        nobody ticked is then given ten seconds more, once.
        """
        lock = 0 if lock_s is None else max(1, int(lock_s * 1000))
        sent = self._server_clock()
        reply = self._run("tick", lock, batch, "1" if publishes else "0", ms(away_s), SHORTEST_PAUSE_MS, ms(sent))
        if not reply:
            return Ticked(False)
        self._meet(int(reply[3]) / 1000)
        obituaries = tuple(replies.obituary(row) for row in reply[1])
        return Ticked(True, replies.grants(reply[0]), obituaries, tuple(w.decode() for w in reply[2]))

    # --- plumbing

    def _find(self, *args: Any) -> tuple[Allocation, ...]:
        return tuple(wire.allocation(row) for row in self._run("find", *args))

    def _submitted_before(self, allocation_id: str, state: str) -> Submitted:
        try:
            allocation = self.get(allocation_id)
        except AllocationNotFound:
            raise AllocationNotFound(f"{allocation_id} was submitted before and has ended ({state})") from None
        return Submitted(allocation, Available(0, 0, 0), known=True)


def _text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
