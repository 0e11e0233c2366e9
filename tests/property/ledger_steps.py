"""The steps of the ledger's machine: the real ledger and the reference take each of them, and all is compared then."""

from __future__ import annotations

import itertools
import os
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis.stateful import RuleBasedStateMachine

from celery_allocator.errors import (
    ActionRefused,
    DeviceBusyError,
    StaleTokenError,
    UnknownTargetError,
    UnsatisfiableError,
)
from celery_allocator.ledger import Grant, Ledger, Note, Options
from celery_allocator.model import DeviceInventory, Kind, NodeInventory, Requirements, Strategy
from tests.property.reference import Reference
from tests.property.reference_pool import DEADLINE_MS, DECAY, MAX_LOSSES, Claim
from tests.property.warmth import Patience, Warmth
from tests.support.ledger_checks import assert_empty, broken, idle_beside_waiting

_numbers = itertools.count()


def inventory(node: str, size: dict[str, Any]) -> NodeInventory:
    gpus = tuple(
        DeviceInventory(f"gpu_{i}", i, f"GPU-{node}-{i}", f"sim {'odd' if i % 2 else 'even'}", mb, near)
        for i, mb, near in size["gpus"]
    )
    labels = {"zone": "b" if node == "n2" else "a"}
    return NodeInventory(node, tuple(sorted(size["cores"])), size["ram"], gpus, labels=labels)


class LedgerSteps(RuleBasedStateMachine):
    """A pool and its reference. What ends in ``_`` is a step, and compares; the rules of a machine draw them."""

    client: redis.Redis

    def begin_(self, sizes: tuple[dict[str, Any], ...], slots: int, *, words: bool, **affinity: int) -> None:
        """``sizes``: of nodes ``n1``, …; ``words``: tasks may say what they need loaded; ``affinity``: its options."""
        self.words = words
        warmth = Warmth(affinity["affinity_s"] * 1000, affinity["affinity_keeps"])
        patience = Patience(affinity["affinity_wait_s"] * 1000)
        self.ref = Reference(now=1_700_000_000_000, warmth=warmth, patience=patience)
        # Without reservations the reference can foretell every grant; with them: test_fairness_machine.
        options = Options(
            start_deadline_s=DEADLINE_MS / 1000,
            max_losses=MAX_LOSSES,
            events_maxlen=1000,
            backfill="greedy",
            runtime_decay=DECAY,
            **affinity,
        )
        clock = lambda: self.ref.now / 1000  # noqa: E731
        self.ledger = Ledger(self.client, f"machine-{os.getpid()}-{next(_numbers)}", clock=clock, options=options)
        self.last_token = 0
        self.names = itertools.count()
        self.silent: set[str] = set()  # workers whose heartbeat has stopped
        self.undoable: dict[int, Claim] = {}  # entries of the journal: what they ended, as it was
        #: For how long (ms) what waits has had room, and how long at most nobody ticked in that time.
        self.beside_room: dict[str, tuple[int, int]] = {}
        self.ticked = self.ref.now
        for number, size in enumerate(sizes, 1):
            self.register_node_(f"n{number}", size, 60_000)
        for device in list(self.ref.devices):
            self.register_worker_(f"w.{device}", "first", device, slots, 10_000)

    def submit_(
        self,
        req: Requirements,
        strategy: Strategy,
        kind: Kind = Kind.TASK,
        eta_s: int | None = None,
        expires_s: int | None = None,
        ttl_s: int = 60,
        on_never: str = "raise",
        task: str = "own",
        several: int = 1,
        more: dict[str, Any] = {},  # noqa: B006  # never changed
    ) -> Claim:
        if not self.words:
            req = replace(req, affinity="")
        if "gpu_model" not in more or req.on_gpu:
            req = replace(req, **more)
        if req.on_gpu and several > 1:
            req = replace(req, gpu_count=several)
        if req.share and strategy is Strategy.FGD:
            strategy = Strategy.SPREAD  # what a share that waits would come to is fgd's own guess
        name = f"c{next(self.names):03}"
        eta = None if eta_s is None else self.ref.now + eta_s * 1000
        exp = None if expires_s is None else self.ref.now + expires_s * 1000
        task_id = name if task == "own" else task
        claim = Claim(name, task_id, req, strategy, kind, 0, ttl_s * 1000, eta, exp)
        options: dict[str, Any] = {
            "strategy": strategy,
            "kind": kind,
            "message": f"message of {name}".encode(),
            "eta_at": None if eta is None else eta / 1000,
            "expires_at": None if exp is None else exp / 1000,
            "ttl_s": ttl_s,
            "on_never": on_never,
        }
        never = self.ref.never(req)
        if on_never == "raise" and never is not None:
            with pytest.raises(UnsatisfiableError) as caught:
                self.ledger.submit(name, task_id, "work", req, **options)
            assert (caught.value.dimension, caught.value.largest) == never
            self.after([])
            return claim
        expected = self.ref.submit(claim)
        reply = self.ledger.submit(name, task_id, "work", req, **options)
        self.after(expected)
        assert reply.allocation.state.value == claim.state
        assert reply.allocation.token == claim.token
        assert frozenset(reply.allocation.cpu_cores) == (claim.cores or frozenset())
        if claim.state == "waiting":
            assert reply.allocation.queue_position == self.ref.line().index(claim) + 1
        if claim.device is not None:
            device = self.ref.devices[claim.device]
            node = self.ref.nodes[device.node]
            left = (self.ref.memory_free(device), self.ref.cores_free(node), self.ref.ram_free(node))
            assert (reply.available.gpu_memory_mb, reply.available.cpu_cores, reply.available.ram_mb) == left
        again = self.ledger.submit(name, task_id, "work", req, **options)
        assert again.known
        assert again.allocation.state.value == claim.state
        self.after([])
        return claim

    def start_(self, claim: Claim, late: bool) -> None:
        device = self.ref.devices[claim.device or ""]
        nonce = f"nonce {claim.token}"
        claim.state, claim.late, claim.nonce, claim.started = "running", late, nonce, self.ref.now
        for _ in range(2):  # the reply was lost: the same delivery asks again
            reply = self.ledger.start(claim.id, claim.token, device.worker, device.incarnation, nonce, late)
            assert (reply.token, reply.worker) == (claim.token, device.worker)
        with pytest.raises(StaleTokenError):
            self.ledger.start(claim.id, claim.token, device.worker, device.incarnation, "another delivery", late)
        self.after([])

    def release_(self, claim: Claim, outcome: str, token: int | None, publishes: bool) -> None:
        expected = self.ref.release(claim, outcome)
        reply = self.ledger.release(claim.id, token, outcome, publishes=publishes)
        assert reply.done, reply
        self.after(expected, reply.grants, publishes)

    def later(self, ms: int) -> None:
        ref, seen = self.ref, self.beside_room
        self.beside_room = {}
        for claim in ref.in_state("waiting") if self.words else ():
            beside, longest = seen.get(claim.id, (0, 0))
            has_room = claim.affine and any(ref.fits(claim, device) for device in ref.devices.values())
            self.beside_room[claim.id] = beside + (ms if has_room else 0), max(longest, ref.now + ms - self.ticked)
        ref.now += ms

    def tick_(self, publishes: bool) -> None:
        granted, again, lost = self.ref.tick(publishes)
        reply = self.ledger.tick(publishes=publishes)
        assert set(reply.lost_workers) == lost
        tasks = [c for c in granted if c.kind is Kind.TASK]
        self.after(granted, reply.grants[: len(tasks)], publishes)
        assert {(g.allocation_id, g.token) for g in reply.grants[len(tasks) :]} == {(c.id, c.token) for c in again}
        self.ticked = self.ref.now
        for claim in self.ref.line():
            beside, longest = self.beside_room.get(claim.id, (0, 0))
            assert beside <= self.ref.patience.wait + longest, f"{claim} has waited beside room for {beside} ms"
        if publishes:
            assert {(o.allocation_id, o.outcome) for o in reply.obituaries} == set(self.ref.buried.items())
            assert all(o.message == f"message of {o.allocation_id}".encode() for o in reply.obituaries)

    def register_node_(self, node: str, size: dict[str, Any], lease: int) -> None:
        expected = self.ref.register_node(inventory(node, size), lease)
        self.after(expected, self.ledger.register_node(inventory(node, size), lease / 1000))

    def register_worker_(self, name: str, incarnation: str, key: str, slots: int, lease: int) -> None:
        node, device_id = key.split("/")
        call: dict[str, Any] = {
            "slots": slots,
            "queue": f"queue of {key}",
            "lease_s": lease / 1000,
            "pid": 7,
            "born": "boot:1",
        }
        device = self.ref.devices.get(key)
        if device is None:
            with pytest.raises(UnknownTargetError):
                self.ledger.register_worker(name, incarnation, node, device_id, **call)
            self.after([])
            return
        in_the_way = [
            (device.worker, device.incarnation),
            (name, getattr(self.ref.workers.get(name), "incarnation", "")),
        ]
        if any(
            inc not in ("", incarnation) and other in self.ref.workers and self.ref.workers[other].lease > self.ref.now
            for other, inc in in_the_way
        ):
            with pytest.raises(DeviceBusyError):
                self.ledger.register_worker(name, incarnation, node, device_id, **call)
            self.after([])
            return
        self.silent.discard(name)
        expected = self.ref.register_worker(name, incarnation, key, slots, lease)
        self.after(expected, self.ledger.register_worker(name, incarnation, node, device_id, **call))

    def end_for_now_(self, claim: Claim, publishes: bool) -> None:
        was = copy(claim)
        note = Note("end", {}, "ada")
        if claim.state == "running":
            expected = self.ref.release(claim, "success")
            released = self.ledger.release(claim.id, claim.token, "success", publishes=publishes, note=note)
            entry, grants = released.entry, released.grants
        else:
            expected = self.ref.cancel(claim)
            cancelled = self.ledger.cancel(claim.id, publishes=publishes, note=note)
            entry, grants = cancelled.entry, cancelled.grants
        assert entry is not None
        self.undoable[entry] = was
        self.after(expected, grants, publishes)

    def bring_back_(self, entry: int, publishes: bool) -> None:
        was = self.undoable[entry]
        note = Note("end", {}, "ada", way="undo", of=entry)
        why, expected = self.ref.restore(was)
        if why:
            with pytest.raises(ActionRefused, match=why):
                self.ledger.restore(was.id, note=note)
            assert self.ledger.entry(entry).state == "done"
            self.after([])
            return
        del self.undoable[entry]
        reply = self.ledger.restore(was.id, publishes=publishes, note=note)
        assert reply.becomes == self.ref.claims[was.id].state
        self.after(expected, reply.grants, publishes)
        with pytest.raises(ActionRefused, match="is undone already"):
            self.ledger.restore(was.id, note=note)
        self.after([])

    # --- comparison

    def after(self, expected: list[Claim], grants: tuple[Grant, ...] | None = None, publishes: bool = True) -> None:
        """Compare everything there is to be read with the prediction; learn tokens and core ids of new grants.

        ``grants``: what the operation returned to be published, ``None`` for one that returns none.
        """
        ledger, ref = self.ledger, self.ref
        assert ledger.verify() == []
        state, held, waiting = ledger.snapshot(), ledger.held(), ledger.queue(10_000)
        assert broken(state, held) == []
        closing = frozenset(d.key for d in ref.devices.values() if not d.open)
        patient = {c.id for c in ref.line() if c.lane in ref.patience.until}
        impatient = tuple(a for a in waiting if a.allocation_id not in patient)
        assert ref.stopped or idle_beside_waiting(state, impatient, closing) == []
        assert state.paused == ("stopped" if ref.stopped else "")

        real = {a.allocation_id: a for a in held}
        taken = {(a.node, core) for a in held for core in a.cpu_cores if ref.claims[a.allocation_id].cores is None}
        for claim in expected:
            allocation = real[claim.id]
            assert allocation.token > self.last_token, "tokens only grow, in the order of grants"
            self.last_token = claim.token = allocation.token
            if not publishes and claim.kind is Kind.TASK:
                claim.due = ref.now
            if claim.cores is not None:  # it came back to the cores that it had
                assert claim.cores == frozenset(allocation.cpu_cores)
                continue
            claim.cores = frozenset(allocation.cpu_cores)
            node = ref.nodes[allocation.node]
            free = set(next(n for n in state.nodes if n.node == node.name).cpu_cores_free)
            free |= {core for name, core in taken if name == node.name}
            self.cores_well_chosen(allocation.cpu_cores, free, ref.devices[claim.device].near)
            taken -= {(node.name, core) for core in claim.cores}
        if grants is not None:
            tasks = [c for c in expected if c.kind is Kind.TASK]
            assert [(g.allocation_id, g.token, g.queue, g.message) for g in grants] == [
                (c.id, c.token, f"queue of {c.device}", f"message of {c.id}".encode()) for c in tasks
            ]

        def row(c: Claim) -> tuple[Any, ...]:
            devices = (c.device, *c.also)
            return (c.state, devices, c.token, c.cores or frozenset(), c.losses, c.task_id)

        assert {
            a.allocation_id: (
                a.state.value,
                tuple(f"{a.node}/{device}" for device in a.device_ids),
                a.token,
                frozenset(a.cpu_cores),
                a.losses,
                a.task_id,
            )
            for a in held
        } == {c.id: row(c) for c in ref.held()}
        assert [(a.allocation_id, a.queue_position) for a in waiting] == [
            (c.id, i) for i, c in enumerate(ref.line(), 1)
        ]
        assert [a.priority for a in waiting] == [c.req.priority for c in ref.line()]
        assert {a.allocation_id for a in ledger.delayed()} == {c.id for c in ref.in_state("delayed")}
        on_hold = {a.allocation_id: (a.priority, a.on_hold_by) for a in ledger.on_hold()}
        assert on_hold == {c.id: (c.req.priority, "operator") for c in ref.in_state("on_hold")}
        assert {n.node: (n.ram_free_mb, n.ram_withheld_mb) for n in state.nodes} == {
            n.name: (ref.ram_free(n), n.withheld) for n in ref.nodes.values()
        }
        for device in state.devices:
            mine = ref.devices[device.key]
            assert (device.memory_free_mb, device.withheld_mb) == (ref.memory_free(mine), mine.withheld)
            assert device.state == (mine.state if mine.live else "offline"), device
            assert (device.worker or "") == mine.worker
            assert device.affinities == ref.warmth.loaded(device.key, ref.now)
        assert {w.worker for w in state.workers} == set(ref.workers)

    @staticmethod
    def cores_well_chosen(picked: tuple[int, ...], free: set[int], near: frozenset[int]) -> None:
        """A run of free cores near the device if there is one, else a run anywhere, else as many near as can be."""
        n, got = len(picked), set(picked)
        assert got <= free

        def runs(among: set[int]) -> list[set[int]]:
            starts = [i for i in among if all(i + k in among for k in range(n))]
            return [set(range(i, i + n)) for i in starts]

        for cores in (free & near, free):
            if runs(cores):
                assert got in runs(cores)
                return
        assert len(got & near) == min(n, len(free & near))

    def teardown(self) -> None:
        """End everything that lives: then nothing may be left."""
        if not hasattr(self, "ref"):
            return
        for allocation in (*self.ledger.queue(10_000), *self.ledger.delayed(10_000), *self.ledger.on_hold(10_000)):
            assert self.ledger.cancel(allocation.allocation_id).done
        for allocation in self.ledger.held():
            assert self.ledger.release(allocation.allocation_id, allocation.token).done
        self.ref.now += 1000
        self.ledger.settle(o.allocation_id for o in self.ledger.tick().obituaries)
        assert_empty(self.ledger)
        keys = list(self.client.scan_iter(match=f"{{allocator:{self.ledger.pool}}}:*", count=10_000))
        self.client.unlink(*keys)
