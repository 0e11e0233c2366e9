"""Ids and names that cannot be recorded are refused before anything is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_allocator.errors import LabelError
from celery_allocator.ledger import keys
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements
from tests.support.ledger_pool import LedgerPool

BAD = ["", "a\nb", "nul\0", "\udcff", "x" * 256, None]
GPU = DeviceInventory("gpu_0", 0, "GPU-0", "Test", 8192)
NODE = NodeInventory("host1", (0, 1), 1024, (GPU,))


def recorded(cluster: LedgerPool) -> list[bytes]:
    """Every key of the pool."""
    return sorted(cluster.ledger.client.scan_iter(f"{keys.prefix(cluster.ledger.pool)}*", count=1000))


@pytest.mark.parametrize("place", range(3), ids=["allocation id", "task id", "task name"])
@pytest.mark.parametrize("value", [*BAD], ids=ascii)
def test_a_submission_with_a_bad_name_changes_nothing(cluster: LedgerPool, place: int, value: Any) -> None:
    names: list[Any] = ["a1", "t1", "proj.work"]
    names[place] = value
    before = recorded(cluster)
    with pytest.raises(LabelError):
        cluster.ledger.submit(*names, Requirements(cpu_cores=1))
    assert recorded(cluster) == before


def test_an_allocations_id_has_no_comma(cluster: LedgerPool) -> None:
    """A task's ids are kept in one field, separated by commas."""
    with pytest.raises(LabelError, match="must not contain ','"):
        cluster.ledger.submit("a,b", "t", "n", Requirements(cpu_cores=1))


@pytest.mark.parametrize(
    "inventory",
    [
        *(replace(NODE, node=name) for name in (*BAD, "a/b", "a b")),
        *(replace(NODE, devices=(replace(GPU, device_id=name),)) for name in (*BAD, "gpu/0", "gpu 0")),
        replace(NODE, devices=(replace(GPU, model="two\nlines"),)),
        replace(NODE, devices=(replace(GPU, uuid="x" * 256),)),
    ],
    ids=lambda inventory: ascii((inventory.node, inventory.devices[0].device_id))[:40],
)
def test_a_host_with_a_bad_name_is_not_registered(cluster: LedgerPool, inventory: NodeInventory) -> None:
    before = recorded(cluster)
    with pytest.raises(LabelError):
        cluster.ledger.register_node(inventory, 60)
    assert recorded(cluster) == before


@pytest.mark.parametrize("value", BAD, ids=ascii)
@pytest.mark.parametrize("place", ["worker", "incarnation", "queue"])
def test_a_worker_with_a_bad_name_is_not_registered(cluster: LedgerPool, place: str, value: Any) -> None:
    cluster.ledger.register_node(NODE, 60)
    names = {"worker": "w@host1", "incarnation": "life", "queue": "q", place: value}
    with pytest.raises(LabelError):
        cluster.ledger.register_worker(
            names["worker"], names["incarnation"], "host1", "gpu_0", slots=1, queue=names["queue"], lease_s=60
        )
    assert cluster.ledger.snapshot().workers == ()


def test_looking_for_what_is_no_text_is_refused(cluster: LedgerPool) -> None:
    """A command line may hold bytes that are no text."""
    with pytest.raises(LabelError, match="not text"):
        cluster.ledger.get("\udcff")
    with pytest.raises(LabelError, match="not text"):
        cluster.ledger.cordon("\udcff")
