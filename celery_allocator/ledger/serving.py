"""The ledger as workers use it: nodes, devices, leases, and the report of what runs."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from typing import Any

from celery_allocator.errors import DeviceBusyError, UnknownTargetError
from celery_allocator.ledger import replies, wire
from celery_allocator.ledger.access import Access, ms
from celery_allocator.ledger.replies import Grant, Grown, Mailbox, Withholding
from celery_allocator.model import Allocation, Link, NodeInventory, RamUse, Withheld, WorkerUse, label, more_of


class Beat(enum.IntEnum):
    """Reply of :meth:`Serving.heartbeat`; true while the lease stands."""

    LOST = 0  # this incarnation is not registered (any more)
    KEPT = 1
    REPORT = 2  # the server has changed since: it asks what this worker runs


class Claim(enum.Enum):
    """Verdict of :meth:`Serving.reclaim`."""

    STANDS = b"ok"
    #: Others hold the same by the ledger, and have not reported yet: ask again.
    LATER = b"later"
    #: Not this worker's any more: it has to be stopped.
    STALE = b"stale"


class Serving(Access):
    """The methods of workers."""

    def register_node(self, inventory: NodeInventory, lease_s: float) -> tuple[Grant, ...]:
        """Tell what a node has (new, again or changed) and extend its lease."""
        args: list[Any] = []
        for device in inventory.devices:
            cores_near = wire.ranges(device.cpu_affinity)
            device_id = label("device", device.device_id, without="/ ")
            uuid, model = label("UUID", device.uuid, empty=True), label("model", device.model, empty=True)
            args += [device_id, device.memory_mb, uuid, model, device.index, cores_near]
        name = label("node", inventory.node, without="/ ")
        cores = wire.core_map(inventory.cpu_cores)
        labels = json.dumps(dict(inventory.labels), sort_keys=True, separators=(",", ":"))
        # There the larger number is the nearer, and what is not listed is 0.
        near = {" ".join(pair): Link.OTHER - link for pair, link in inventory.links.items() if link < Link.OTHER}
        links = json.dumps(near, sort_keys=True, separators=(",", ":"))
        return replies.grants(
            self._run("register_node", name, ms(lease_s), cores, inventory.ram_mb, labels, links, *args)
        )

    @wire.reads("the worker that serves the device")
    def register_worker(
        self,
        worker: str,
        incarnation: str,
        node: str,
        device_id: str,
        *,
        slots: int,
        queue: str,
        lease_s: float,
        pid: int = 0,
        born: str = "",
        takeover: str = "",
        mailbox: Mailbox | None = None,
        report: int = 0,
        last_word: bool = True,
        runs: Iterable[str] = (),
    ) -> tuple[Grant, ...]:
        """A worker begins to serve a device of a registered node.

        ``born``: which process ``pid`` was when it said so, against reuse of pids. ``takeover`` names an incarnation
        whose process the caller knows to be gone, so that its lease need not be waited for. ``mailbox``: where the
        scripts may put granted messages themselves. ``report``: number of the report that this is part of (see
        :meth:`rejoin`); with it, ``runs`` are the ids of all that the worker runs, and what else counts as running
        there has ended; without ``last_word`` the worker is asked again.
        Raises :class:`DeviceBusyError`, :class:`UnknownTargetError`.
        """
        key = f"{node}/{device_id}"
        box = (mailbox.key, mailbox.head) if mailbox else ("", "")
        who, life = label("worker", worker), label("incarnation", incarnation)
        args = (who, life, key, slots, label("queue", queue), ms(lease_s), pid, born, takeover, *box)
        reply = self._run("register_worker", *args, report, "1" if last_word else "0", *runs)
        if reply[0] == b"unknown_device":
            raise UnknownTargetError(f"no device {key!r} is registered")
        if reply[0] == b"busy":
            error = DeviceBusyError(key, reply[1].decode(), reply[2].decode(), int(reply[3]) / 1000)
            error.pid, error.born, error.node = int(reply[4] or 0), reply[5].decode(), reply[6].decode()
            raise error
        return replies.grants(reply[1])

    def heartbeat(self, worker: str, incarnation: str, lease_s: float, use: WorkerUse | None = None) -> Beat:
        """Renew a worker's lease and its node's. ``use``: what it has measured since (its ``at`` is the ledger's)."""
        told = "" if use is None else json.dumps(use.to_wire(), separators=(",", ":"))
        return Beat(int(self._run("heartbeat", worker, incarnation, ms(lease_s), told)))

    @wire.reads("the device")
    def withhold(
        self,
        worker: str,
        incarnation: str,
        device: str,
        gpu: Withheld | None = None,
        ram: RamUse | None = None,
        *,
        registering: bool = False,
    ) -> Withholding | None:
        """A worker has measured what is used of ``device`` (``node/device``) and of its node's RAM beyond all claims.

        ``None`` for what was not measured: what was said last stays. What it calls foreign is accounted for up to what
        others than its tasks hold of it: allocations made by hand, tasks of other workers on several GPUs.
        ``registering``: it is about to register, so that nothing is granted on what is not there. ``None`` is returned
        if the device is not known, or another live worker's.
        """
        seen: list[Any] = [""] * 4
        if gpu is not None:
            seen = [gpu.foreign_mb, gpu.leftover_mb, gpu.overuse_mb, "1" if gpu.pids_hidden else "0"]
        seen += [""] * 3 if ram is None else [ram.used_mb, ram.ours_mb, ram.overuse_mb]
        reply = self._run("withhold", worker, incarnation, device, "1" if registering else "0", *seen)
        if not reply:
            return None
        grants, gpu_mb, ram_mb, blocks = reply
        return Withholding(replies.grants(grants), int(gpu_mb), int(ram_mb), bool(blocks))

    def rejoin(self, worker: str, run_id: str, lease_s: float) -> tuple[int, bool]:
        """A worker is about to report what it runs. ``run_id``: the run of the server that it last reported to.

        Returns the report's number, and whether granting was paused for a lease, because the server has lost what it
        was told. Whatever of a report arrives after a later one has no effect.
        """
        number, paused = self._run("rejoin", worker, run_id, ms(lease_s))
        return int(number), bool(paused)

    def unreported(self, worker: str, incarnation: str, device: str, report: int, runs: Iterable[str]) -> bool:
        """A worker runs these and nothing else on ``device`` (``node/device``): what else is counted has ended.

        Nothing is granted for what becomes free before the worker registers. Returns whether the device is its own.
        """
        return bool(self._run("unreported", worker, incarnation, device, report, *runs))

    def reclaim(
        self,
        allocation: Allocation,
        worker: str,
        *,
        repeatable: bool = False,
        message: bytes = b"",
        report: int = 0,
        run_id: str = "",
        patient: bool = False,
    ) -> tuple[Claim, str]:
        """A worker runs this: make it so in the ledger again. Returns the verdict, and why it is not that it stands.

        ``message`` is recorded where the ledger has lost it. ``run_id``: the run of the server that the worker last
        reported to; if it is still that one, nothing can have been lost. ``patient``: see :class:`Claim`.
        """
        req = allocation.requirements
        reply = self._run(
            "reclaim",
            allocation.allocation_id,
            allocation.token,
            f"{allocation.node}/{allocation.device_id}",
            ",".join(str(core) for core in allocation.cpu_cores),
            worker,
            "",  # no delivery will pass the gate for it again
            "1" if repeatable else "0",
            ms(allocation.started_at or allocation.submitted_at),
            allocation.task_id,
            allocation.task_name,
            allocation.gpu_memory_mb,
            req.cpu_cores,
            req.ram_mb,
            req.priority,
            allocation.strategy.value,
            message,
            report,
            run_id,
            "1" if patient else "0",
            req.gpu_count,
            more_of(req),
            " ".join(f"{allocation.node}/{device_id}" for device_id in allocation.device_ids),
            req.gpu_memory_mb,
        )
        return Claim(reply[0]), reply[1].decode(errors="backslashreplace") if len(reply) > 1 else ""

    def grow(self, allocation_id: str, token: int, growth: float, most: int, *, publishes: bool = True) -> Grown:
        """A running task ran out of GPU memory: back into line under its old place, with ``growth`` times as much.

        At most as much as the largest device that could hold it has, and its tenant may hold; ``most`` times at most.
        What it held is given back. A repeated call finds the token stale. ``publishes``: as in :meth:`Ledger.release`.
        """
        reply = self._run("grow", allocation_id, token, repr(growth), most, "1" if publishes else "0")
        if reply[0] != b"ok":
            return Grown(False, reply[0].decode())
        _, granted, before, now, times = reply
        return Grown(True, "", int(before), int(now), int(times), replies.grants(granted))

    def take_duty(self, name: str, holder: str, lease_s: float) -> bool:
        """Take, or keep for ``lease_s`` more seconds, what one worker does at a time. False if somebody else has it."""
        return bool(self._run("duty", name, holder, ms(lease_s)))

    def give_up_duty(self, name: str, holder: str) -> None:
        """Leave a duty to others at once."""
        self._run("duty", name, holder, 0)

    def close_worker(self, worker: str, incarnation: str) -> tuple[Grant, ...]:
        """Stop granting to a worker that finishes what it runs; unstarted grants go elsewhere."""
        reply = self._run("unregister_worker", worker, incarnation, "1")
        return replies.grants(reply[0]) if reply else ()

    def unregister_worker(self, worker: str, incarnation: str) -> tuple[Grant, ...]:
        """A worker leaves. What it still runs counts as lost."""
        reply = self._run("unregister_worker", worker, incarnation, "0")
        return replies.grants(reply[0]) if reply else ()
