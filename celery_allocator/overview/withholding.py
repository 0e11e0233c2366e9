"""What is in use and no claim accounts for, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from celery_allocator.model import Allocation, ClusterState, DeviceState, NodeState, Withheld
from celery_allocator.overview.cluster import STALE_S


def of_device(device: DeviceState) -> Iterator[str]:
    """Why memory of a GPU is free by the claims and not given to anybody: a sentence for each reason."""
    yield from _told(device.withheld, device.key)


def of_node(node: NodeState) -> Iterator[str]:
    """The same for the RAM of a node."""
    yield from _told(node.ram_withheld, f"RAM of {node.node}")


def of_cluster(cluster: ClusterState) -> Iterator[str]:
    """The same for all nodes and devices."""
    for node in cluster.nodes:
        yield from of_node(node)
        for device in node.devices:
            yield from of_device(device)


def of_tasks(cluster: ClusterState, only: Allocation | None = None) -> Iterator[str]:
    """Which running tasks exceed their promise, as their workers judge that: a sentence for each and resource.

    ``only``: of one task, without naming it.
    """
    for worker in cluster.workers:
        fresh = worker.use is not None and cluster.at - worker.use.at <= STALE_S
        for task in worker.use.tasks if worker.use is not None and fresh else ():
            if only is not None and task.allocation_id != only.allocation_id:
                continue
            whose = "" if only is not None else f"{task.allocation_id} on {worker.node}/{worker.device_id} "
            for over, what in ((task.gpu_memory_over_mb, "GPU memory"), (task.ram_over_mb, "RAM")):
                if over:
                    yield f"{whose}uses {over:,} MB of {what} beyond its promise"


def _told(withheld: Withheld, where: str) -> Iterator[str]:
    foreign = (
        "beyond what is claimed; by whom cannot be told, process ids are hidden"
        if withheld.pids_hidden
        else "by processes that are not ours"
    )
    for amount, text in (
        (withheld.foreign_mb, f"used {foreign}"),
        (withheld.leftover_mb, "held by processes of its worker that run no task"),
        (withheld.overuse_mb, "used by tasks beyond what they claimed"),
    ):
        if amount:
            yield f"{amount:,} MB of {where} are {text}."
