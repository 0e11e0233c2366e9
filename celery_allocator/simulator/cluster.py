"""The simulated cluster: registered in the ledger, and mirrored here so that use can be integrated over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from celery_allocator.ledger import Grant, Ledger
from celery_allocator.model import CPU_DEVICE, Allocation, NodeInventory, Requirements

#: Longer than any trace: nothing in a simulation dies.
LEASE_S = 1e10
#: Tasks that one device may run at once: its memory and its node's cores are the bound, not this.
SLOTS = 1_000_000
INCARNATION = "simulation"


@dataclass
class _Node:
    cores_free: int
    ram_free_mb: int
    gpus_free_mb: dict[str, int] = field(default_factory=dict)

    def hosts(self, need: Requirements) -> bool:
        """True if cores and RAM would do; the GPU is asked for apart."""
        return self.cores_free >= need.cpu_cores and self.ram_free_mb >= need.ram_mb


class Cluster:
    """What is free where, and in all."""

    def __init__(self, nodes: Sequence[NodeInventory]) -> None:
        self.inventory = nodes
        self.gpu_memory_mb = sum(device.memory_mb for node in nodes for device in node.devices)
        self.cpu_cores = sum(len(node.cpu_cores) for node in nodes)
        self.ram_mb = sum(node.ram_mb for node in nodes)
        self.gpu_used_mb = 0
        self.cores_used = 0
        self._nodes = {
            node.node: _Node(len(node.cpu_cores), node.ram_mb, {d.device_id: d.memory_mb for d in node.devices})
            for node in nodes
        }

    def register(self, ledger: Ledger) -> tuple[Grant, ...]:
        """Tell the ledger of every node, and of one worker per device and one for CPU-only work."""
        grants: tuple[Grant, ...] = ()
        for node in self.inventory:
            grants += ledger.register_node(node, LEASE_S)
            for device in (*(device.device_id for device in node.devices), CPU_DEVICE):
                worker = worker_of(node.node, device)
                grants += ledger.register_worker(
                    worker, INCARNATION, node.node, device, slots=SLOTS, queue=worker, lease_s=LEASE_S
                )
        return grants

    def take(self, allocation: Allocation) -> None:
        """A task has begun on what it was granted."""
        self._shift(allocation, 1)

    def give_back(self, allocation: Allocation) -> None:
        """A task has ended."""
        self._shift(allocation, -1)

    def share(self, need: Requirements) -> float:
        """The largest of the shares that a task takes of the whole cluster's GPU memory, cores and RAM."""
        pairs = (
            (need.gpu_memory_mb * need.gpu_count, self.gpu_memory_mb),
            (need.cpu_cores, self.cpu_cores),
            (need.ram_mb, self.ram_mb),
        )
        return max(asked / total if total else 0.0 for asked, total in pairs)

    def fragmentation(self, classes: Iterable[tuple[Requirements, float]]) -> float | None:
        """Share of the free GPU memory (without GPUs: of the free cores) that an average task could not use.

        ``classes``: shapes and their shares of all tasks. Memory counts as unusable for a shape where its device has
        too little, or its node too few such devices or cores or too little RAM. After Weng et al., "Beware of
        Fragmentation", USENIX ATC 2023, without their count of tasks that need no GPU. ``None``: nothing is free.
        """
        gpus = self.gpu_memory_mb > 0
        lost = total = 0.0
        nodes = self._nodes.values()
        all_free = sum(sum(n.gpus_free_mb.values()) if gpus else n.cores_free for n in nodes)
        for need, share in classes:
            if gpus and not need.gpu_memory_mb:
                continue
            usable = 0
            for node in nodes:
                if not node.hosts(need):
                    continue
                if gpus:
                    fitting = [free for free in node.gpus_free_mb.values() if free >= need.gpu_memory_mb]
                    usable += sum(fitting) if len(fitting) >= need.gpu_count else 0
                elif not need.gpu_memory_mb:
                    usable += node.cores_free
            lost += share * (all_free - usable)
            total += share * all_free
        return lost / total if total else None

    def _shift(self, allocation: Allocation, sign: int) -> None:
        assert allocation.node is not None
        node = self._nodes[allocation.node]
        cores = len(allocation.cpu_cores)
        node.cores_free -= sign * cores
        node.ram_free_mb -= sign * allocation.ram_mb
        self.cores_used += sign * cores
        for device in allocation.device_ids:
            if device in node.gpus_free_mb:
                node.gpus_free_mb[device] -= sign * allocation.gpu_memory_mb
                self.gpu_used_mb += sign * allocation.gpu_memory_mb


def worker_of(node: str, device_id: str) -> str:
    """The name of a simulated worker, and of its queue."""
    return f"{node}/{device_id}"


def classes_of(needs: Iterable[Requirements], most: int = 20) -> list[tuple[Requirements, float]]:
    """The ``most`` frequent shapes, and the share of each among them."""
    plain = (replace(need, priority=0, tenant="", expected_runtime_s=0, size="") for need in needs)
    common = Counter(plain).most_common(most)
    total = sum(count for _, count in common)
    return [(shape, count / total) for shape, count in common]
