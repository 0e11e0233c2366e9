"""What is in use and no claim accounts for, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from celery_allocator.model import ClusterState, DeviceState, NodeState, Withheld


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
