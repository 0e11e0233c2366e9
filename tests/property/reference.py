"""A second ledger, in plain Python and by brute force: what the real one should do, worked out without any index.

It keeps allocations, devices and nodes in dicts, computes every free amount by summing up, and finds a device by
looking at all of them. It predicts every grant, in order. Core ids alone are taken from the real ledger (after they
were checked): which of several equally good cores it takes is its own affair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from copy import copy
from dataclasses import replace

from celery_allocator.model import Kind, NodeInventory
from tests.property.reference_placement import Placement
from tests.property.reference_pool import DEADLINE_MS, MAX_LOSSES, Claim, Device, Node, Worker, amount
from tests.property.sketch import pace


class Reference(Placement):
    """The whole pool. Operations return the claims they grant, in order."""

    # --- grants

    def grant(self, claim: Claim, device: Device) -> Claim:
        claim.device, claim.cores, claim.token = device.key, None, -1
        claim.mb = amount(claim.req, device)
        claim.granted, claim.started = self.now, None
        self.leaves_line(claim)
        if claim.affine:
            claim.hit = claim.req.affinity in self.warmth.loaded(device.key, self.now)
            self.warmth.use(device.key, claim.req.affinity, device.slots, self.now)
        if claim.kind is Kind.TASK:
            claim.state, claim.due = "granted", self.now + DEADLINE_MS
        else:
            claim.state, claim.ends, claim.started = "running", self.now + claim.ttl, self.now
        return claim

    def sweep(self, within: Node | None = None, lanes: set[Hashable] | None = None) -> list[Claim]:
        """In order of priority, then arrival, whatever fits; within a lane nobody is passed by.

        ``within``: one node, where something was freed; ``lanes``: those of them alone.
        """
        granted, stuck = [], set()
        for claim in self.line():
            if claim.lane in stuck or (lanes is not None and claim.lane not in lanes):
                continue
            device = self.choice(claim, within)
            if device is None:
                stuck.add(claim.lane)
            else:
                granted.append(self.grant(claim, device))
        return granted

    def leaves_line(self, claim: Claim) -> None:
        """It has been granted, is on hold, or has ended: with the last of a lane its patience ends."""
        if not any(c.lane == claim.lane for c in self.in_state("waiting") if c is not claim):
            self.patience.drop(claim.lane)

    # --- the life of an allocation

    def submit(self, claim: Claim) -> list[Claim]:
        self.seq += 1
        claim.seq = self.seq
        claim.pace = pace(claim.req.expected_runtime_s * 1000 or self.runs.promised())
        self.claims[claim.id] = claim
        if claim.eta is not None and claim.eta > self.now:
            claim.state = "delayed"
            self.learn(claim)
            return []
        granted = self.arrive(claim)
        self.learn(claim)
        return granted

    def arrive(self, claim: Claim) -> list[Claim]:
        if claim.kind is Kind.MANUAL:
            claim.ends = self.now + claim.ttl
        return self.place_or_wait(claim)

    def place_or_wait(self, claim: Claim) -> list[Claim]:
        """It goes somewhere at once, unless it is behind others of its own lane."""
        claim.state = "coming"
        lane = [c for c in self.line() if c.lane == claim.lane]
        device = None
        if not lane or claim.place_in_line < lane[0].place_in_line:
            device = self.choice(claim)
        claim.state, claim.joined = "waiting", self.now
        return [self.grant(claim, device)] if device is not None else []

    def end(self, claim: Claim, outcome: str, *, buried: bool) -> None:
        del self.claims[claim.id]
        self.gives_back(claim)
        self.leaves_line(claim)
        self.spend(claim)
        if buried:
            self.buried[claim.id] = outcome
        else:
            self.ended.add(claim.id)

    def spend(self, claim: Claim) -> None:
        if claim.token:
            self.spent.append((claim.id, claim.token))

    def gives_back(self, claim: Claim) -> None:
        """What it held; and what it leaves loaded there."""
        if claim.device is None or not claim.affine:
            return
        if claim.state == "running":
            word, device = claim.req.affinity, self.devices[claim.device]
            self.warmth.use(device.key, word, device.slots, self.now)
        elif not claim.hit:
            self.warmth.forget(claim.device, claim.req.affinity)

    def back_in_line(self, claim: Claim) -> None:
        self.gives_back(claim)
        self.spend(claim)
        claim.state, claim.device, claim.token, claim.cores, claim.nonce = "waiting", None, 0, None, ""
        claim.joined, claim.started = self.now, None
        claim.also, claim.mb = (), 0
        if claim.kind is Kind.MANUAL:
            claim.ends = self.now + claim.ttl

    def release(self, claim: Claim, outcome: str) -> list[Claim]:
        assert claim.device is not None
        node = self.nodes[claim.device.split("/")[0]]
        if outcome == "requeue":
            self.back_in_line(claim)
            granted = self.sweep()
        else:
            if outcome == "success" and claim.started is not None:
                self.runs.learn(max(0, self.now - claim.started))
            self.end(claim, outcome, buried=False)
            granted = self.sweep(node)
        if claim.kind is Kind.MANUAL:
            self.close_if_idle(node)
        return granted

    def grow(self, claim: Claim, growth: float, most: int) -> tuple[str, list[Claim]]:
        """It ran out of GPU memory. Returns why it is not granted again with more, or else what is granted by that."""
        now = claim.mb
        if claim.kind is Kind.MANUAL:
            return "not_running", []
        if not now:
            return "no_gpu", []
        if claim.grown >= most:
            return "spent", []
        wanted = math.ceil(now * growth)
        sizes = {wanted, *(d.memory for d in self.devices.values() if d.known and d.memory < wanted)}
        larger = [mb for mb in sizes if mb > now and self.never(replace(claim.req, gpu_memory_mb=mb)) is None]
        if not larger:
            return "largest", []
        self.back_in_line(claim)
        claim.req, claim.grown = replace(claim.req, gpu_memory_mb=max(larger)), claim.grown + 1
        return "", self.sweep()

    def cancel(self, claim: Claim) -> list[Claim]:
        node = self.nodes[claim.device.split("/")[0]] if claim.device is not None else None
        self.end(claim, "cancelled", buried=claim.kind is Kind.TASK)
        granted = self.sweep(node) if node is not None else []
        if node is not None and claim.kind is Kind.MANUAL:
            self.close_if_idle(node)
        return granted

    def close_if_idle(self, node: Node) -> None:
        devices = [d for d in self.devices.values() if d.node == node.name]
        if node.lease is not None and not any(d.worker or self.on(d.key) for d in devices):
            node.lease = self.now

    # --- what operators do to one allocation

    def hold(self, claim: Claim) -> None:
        if claim.kind is Kind.MANUAL and claim.state == "delayed":
            claim.ends = self.now + claim.ttl
        claim.state = "on_hold"
        self.leaves_line(claim)

    def unhold(self, claim: Claim) -> list[Claim]:
        if claim.eta is None or claim.eta <= self.now:
            return self.place_or_wait(claim)
        claim.state, claim.ends = "delayed", None
        return []

    def prioritize(self, claim: Claim, priority: int) -> None:
        claim.req, claim.front = replace(claim.req, priority=priority), None

    def to_front(self, claim: Claim) -> None:
        """Before whoever is first, in a place that no arrival has."""
        first = next(iter(self.line()), claim)
        if first is not claim and first.place_in_line <= claim.place_in_line:
            claim.front = first.place_in_line - (2 if first.front is not None else 1)

    def restore(self, was: Claim) -> tuple[str, list[Claim]]:
        """Bring back what an operator ended. Returns why not, or else what is granted by that."""
        if was.exp is not None and was.exp <= self.now and was.state != "running":
            return "expired", []
        device = self.devices.get(was.device or "")
        others = [self.devices[key] for key in was.also]
        live = device is not None and all(d.live for d in (device, *others))
        free = device is not None and live and all(self.vacant(was, d) for d in (device, *others))
        if device is not None and was.kind is Kind.MANUAL and not free:
            return "taken|not there any more" if live else "offline", []
        claim = self.claims[was.id] = copy(was)
        self.buried.pop(was.id, None)
        self.ended.discard(was.id)
        claim.token = 0
        if device is None:
            if claim.kind is Kind.MANUAL and claim.state != "delayed":
                claim.ends = self.now + claim.ttl
            return "", self.place_or_wait(claim) if claim.state == "waiting" else []
        if not free:
            claim.device = None  # it held that before it was ended
            self.back_in_line(claim)
            return "", self.sweep()
        self.grant(claim, device)
        claim.cores, claim.mb = was.cores, was.mb
        if claim.kind is Kind.MANUAL:
            node = self.nodes[device.node]
            node.lease = None if node.lease is None else max(node.lease, self.now + claim.ttl)
        return "", [claim]

    def vacant(self, claim: Claim, device: Device) -> bool:
        """Whether the place that it had is free: the device as it is now, and these very cores."""
        req, node = claim.req, self.nodes[device.node]
        served = device.worker and device.open and self.slots_free(device) > 0 and device.state != "draining"
        held = frozenset().union(*(c.cores or frozenset() for c in self.on_node(node.name)))
        return (
            bool(served or claim.kind is Kind.MANUAL)
            and self.memory_free(device) >= claim.mb
            and self.ram_free(node) >= req.ram_mb
            and (claim.cores or frozenset()) <= node.cores - held
        )

    # --- nodes and workers

    def register_node(self, inventory: NodeInventory, lease: int) -> list[Claim]:
        node = self.nodes.setdefault(inventory.node, Node(inventory.node))
        node.lease = max(node.lease or 0, self.now + lease)
        node.cores, node.ram = frozenset(inventory.cpu_cores), inventory.ram_mb
        node.labels = dict(inventory.labels)
        held = {core for c in self.on_node(node.name) for core in c.cores or ()}
        told = (node.cores, max((*node.cores, *held), default=-1), node.ram, node.labels)
        changed, node.told = told != node.told, told
        models = {f"{node.name}/{d.device_id}": d.model for d in inventory.devices}
        named = {f"{node.name}/{d.device_id}": (d.memory_mb, frozenset(d.cpu_affinity)) for d in inventory.devices}
        named[f"{node.name}/cpu"] = (0, frozenset())
        for key, (memory, near) in named.items():
            if key not in self.devices:
                self.devices[key] = Device(key, len(self.devices), memory, node.state, live=False)
            device = self.devices[key]
            changed = changed or not device.live or (device.memory, device.near) != (memory, near)
            device.memory, device.near, device.live, device.known = memory, near, True, True
            device.model = models.get(key, "")
        for device in self.devices.values():
            if device.node == node.name and device.key not in named and not device.worker:
                changed = changed or device.live
                device.live = device.known = False
                self.unwithhold(device)
        return self.sweep(node) if changed else []

    def register_worker(self, name: str, incarnation: str, key: str, slots: int, lease: int) -> list[Claim]:
        device = self.devices[key]
        old = self.workers.get(name)
        if device.worker and device.incarnation != incarnation:
            self.drop_worker(device.worker)
        if old is not None and (old.incarnation != incarnation or old.device != key):
            self.drop_worker(name)
        self.workers[name] = Worker(incarnation, key, self.now + lease)
        node = self.nodes[device.node]
        node.lease = max(node.lease or 0, self.now + lease)
        if device.told_by not in (None, incarnation):
            self.unwithhold(device)
        device.worker, device.incarnation, device.slots = name, incarnation, slots
        device.open = device.live = device.known = True
        return self.sweep()

    def drop_worker(self, name: str) -> None:
        worker = self.workers.pop(name, None)
        if worker is None:
            return
        device = self.devices[worker.device]
        if device.worker != name:
            return
        for claim in self.on(device.key):
            if claim.kind is not Kind.TASK or claim.device != device.key:
                continue
            if claim.state == "granted":
                self.back_in_line(claim)
            elif claim.late and claim.losses < MAX_LOSSES:
                claim.losses += 1
                self.back_in_line(claim)
            else:
                # A retry under the same task id will write the result.
                follows = any(c.task_id == claim.task_id and c is not claim for c in self.claims.values())
                self.end(claim, "lost", buried=not follows)
        if device.told_by == device.incarnation:
            self.unwithhold(device)
        device.worker, device.incarnation, device.open, device.slots = "", "", False, 0
        self.warmth.clear(device.key)

    def withhold(
        self, name: str, incarnation: str, key: str, registering: bool, gpu: int | None, ram: tuple[int, int] | None
    ) -> list[Claim] | None:
        """What a worker has measured. ``gpu``: foreign; ``ram``: used of the node, and by the worker."""
        device = self.devices[key]
        lives = device.worker in self.workers and self.workers[device.worker].lease > self.now
        if registering and device.worker not in ("", name) and lives:
            return None
        if not registering and (device.worker, device.incarnation) != (name, incarnation):
            return None
        device.told_by = incarnation
        node = self.nodes[device.node]
        before = device.withheld, node.withheld
        if gpu is not None and device.is_gpu:
            others = [c for c in self.on(key) if c.kind is Kind.MANUAL or c.device != key]
            device.withheld = max(0, gpu - sum(c.mb for c in others))
        if ram is not None:
            used, device.ram_ours = ram
            ours = sum(d.ram_ours or 0 for d in self.devices.values() if d.node == node.name)
            by_hand = sum(c.req.ram_mb for c in self.on_node(node.name) if c.kind is Kind.MANUAL)
            node.withheld = max(0, used - ours - by_hand)
        return self.sweep(node) if device.withheld < before[0] or node.withheld < before[1] else []

    def unwithhold(self, device: Device) -> None:
        """Who measured it is gone."""
        device.withheld, device.told_by, device.ram_ours = 0, None, None
        node = self.nodes[device.node]
        if all(d.ram_ours is None for d in self.devices.values() if d.node == node.name):
            node.withheld = 0

    def withdraw_unstarted(self, key: str, *, served: bool = False) -> None:
        """``served``: what the device's worker would run; else also what is on others with it."""
        for claim in self.on(key):
            if claim.state == "granted" and (claim.device == key or not served):
                self.back_in_line(claim)

    def set_state(self, target: str, states: str | dict[str, str]) -> list[Claim]:
        """``states``: one for all, or of the node and each device; what is not named gets its node's."""
        of = states if isinstance(states, dict) else {}
        common = of.get(target, "") if isinstance(states, dict) else states
        if "/" not in target:
            self.nodes[target].state = common
        opened = False
        for device in self.devices.values():
            if target in (device.key, device.node):
                state = of.get(device.key, common)
                if state == "draining":
                    self.withdraw_unstarted(device.key)
                device.state = state
                opened = opened or state != "cordoned"
        return self.sweep() if opened else []

    def pause(self, stop: bool) -> list[Claim]:
        self.stopped = stop
        return [] if stop else self.sweep()

    # --- maintenance

    def repair(self) -> tuple[list[Claim], set[str]]:
        """Of more than there is (a node has shrunk) the older grants stay, and what runs; and who waits waits anew.

        Returns the new grants, and who runs beside others on the same.
        """
        kept: list[Claim] = []
        left = set()
        for claim in sorted(self.held(), key=lambda c: c.token):
            if self.has_room_beside(claim, kept):
                kept.append(claim)
            elif claim.state == "running":
                kept.append(claim)
                left.add(claim.id)
            else:
                claim.device = None  # what is loaded there is nothing that is counted
                self.back_in_line(claim)
        for claim in self.line():
            claim.joined = self.now
            self.patience.drop(claim.lane)
        return self.sweep(), left

    def has_room_beside(self, claim: Claim, others: list[Claim]) -> bool:
        """Whether its place is its own by what there is in all, where others hold what they hold."""
        first = self.devices[claim.device or ""]
        for device in (first, *(self.devices[key] for key in claim.also)):
            here = sum(c.mb for c in others if device.key in (c.device, *c.also))
            if device.memory - here < claim.mb:
                return False
        there = [c for c in others if c.device is not None and c.device.split("/")[0] == first.node]
        tasks = sum(c.kind is Kind.TASK and c.device == first.key for c in there)
        ram = self.nodes[first.node].ram - sum(c.req.ram_mb for c in there)
        return ram >= claim.req.ram_mb and (claim.kind is Kind.MANUAL or tasks < first.slots)

    def tick(self, publishes: bool) -> tuple[list[Claim], list[Claim], set[str]]:
        """Returns the new grants, the earlier ones to be published again, the workers lost."""
        lost = {name for name, worker in self.workers.items() if worker.lease <= self.now}
        for name in lost:
            self.drop_worker(name)
        for node in self.nodes.values():
            if node.lease is not None and node.lease <= self.now:
                node.lease = None
                for device in self.devices.values():
                    if device.node == node.name and device.live:
                        device.live = False
                        self.unwithhold(device)
        emptied, moved = [], bool(lost)
        for claim in list(self.claims.values()):
            if claim.ends is not None and claim.ends <= self.now and claim.state in ("waiting", "on_hold", "running"):
                if claim.device is not None:
                    emptied.append(self.nodes[claim.device.split("/")[0]])
                self.end(claim, "ttl", buried=False)
                moved = True
        for claim in list(self.claims.values()):
            unstarted = claim.state in ("waiting", "delayed", "on_hold", "granted")
            if claim.exp is not None and claim.exp <= self.now and unstarted:
                moved = moved or claim.state == "granted"
                self.end(claim, "expired", buried=claim.kind is Kind.TASK)
        granted = self.sweep() if moved else []
        granted += self.sweep(lanes=self.patience.due(self.now))
        for node in emptied:
            self.close_if_idle(node)
        for claim in sorted(self.in_state("delayed"), key=lambda c: (c.eta, c.id)):
            if claim.eta is not None and claim.eta <= self.now:
                granted += self.arrive(claim)
        again = [c for c in self.in_state("granted") if publishes and c.due <= self.now and c.token >= 0]
        for claim in again:
            claim.due = self.now + DEADLINE_MS
        return granted, again, lost
