"""The one invariant, worked out from what a ledger's readers return: nothing here knows its keys or scripts."""

from __future__ import annotations

from collections import Counter, defaultdict

from celery_allocator.ledger import Ledger
from celery_allocator.model import Allocation, ClusterState, DeviceState, Kind, State


def broken(state: ClusterState, held: tuple[Allocation, ...]) -> list[str]:
    """Each way in which ``sum(held) + free + withheld = capacity`` does not hold, as a sentence.

    A core that was withdrawn from its node while held counts as held and not as the node's; every other amount may be
    below zero only where capacity shrank under what was held, or more is withheld than is left; it still adds up.
    """
    found: list[str] = []

    def equal(what: str, is_: object, should: object) -> None:
        if is_ != should:
            found.append(f"{what} is {is_}, should be {should}")

    by_device: dict[str, list[Allocation]] = defaultdict(list)
    for allocation in held:
        for device_id in allocation.device_ids:
            by_device[f"{allocation.node}/{device_id}"].append(allocation)
        equal(f"{allocation.allocation_id} number of devices", len(set(allocation.device_ids)), _devices(allocation))
        equal(
            f"{allocation.allocation_id} number of cores", len(allocation.cpu_cores), allocation.requirements.cpu_cores
        )
    tokens = Counter(a.token for a in held)
    found += [f"token {token} is held {n} times" for token, n in tokens.items() if n > 1]
    for node in state.nodes:
        # Cores and RAM of a claim on several devices are taken once.
        mine = list({a.allocation_id: a for device in node.devices for a in by_device[device.key]}.values())
        cores = Counter(core for a in mine for core in a.cpu_cores)
        found += [f"core {core} of {node.node} is held {n} times" for core, n in cores.items() if n > 1]
        equal(f"{node.node} free cores", set(node.cpu_cores_free), set(node.cpu_cores) - set(cores))
        equal(
            f"{node.node} free RAM", node.ram_free_mb + node.ram_withheld_mb, node.ram_mb - sum(a.ram_mb for a in mine)
        )
        equal(f"{node.node} RAM withheld", node.ram_withheld.total_mb, node.ram_withheld_mb)
        for device in node.devices:
            found += _device(device, by_device.pop(device.key))
    found += [
        f"{a.allocation_id} is held on {key}, which does not exist" for key, some in by_device.items() for a in some
    ]
    equal("granted", state.granted, sum(a.state is State.GRANTED for a in held))
    equal("running", state.running, sum(a.state is State.RUNNING for a in held))
    return found


def _devices(allocation: Allocation) -> int:
    return allocation.requirements.gpu_count


def _device(device: DeviceState, held: list[Allocation]) -> list[str]:
    found = []
    free = device.memory_mb - sum(a.gpu_memory_mb for a in held)
    # One on several GPUs takes a slot of the first one's worker.
    tasks = [a for a in held if a.kind is Kind.TASK and a.device_id == device.device_id]
    if device.memory_free_mb + device.withheld_mb != free:
        found.append(
            f"{device.key} free memory is {device.memory_free_mb}, {device.withheld_mb} are withheld, should be {free}"
        )
    if device.withheld.total_mb != device.withheld_mb:
        found.append(f"{device.key}: {device.withheld_mb} are withheld, by {device.withheld}")
    if device.slots_free != device.slots - len(tasks):
        found.append(f"{device.key} free slots is {device.slots_free}, should be {device.slots - len(tasks)}")
    if set(device.allocations) != {a.allocation_id for a in held}:
        found.append(f"{device.key} lists {device.allocations}, held are {[a.allocation_id for a in held]}")
    return found


def over_capacity(state: ClusterState) -> list[str]:
    """Every amount below zero. Empty unless capacity shrank under what is held, or more is withheld than is left."""
    nodes = [f"{node.node} RAM {node.ram_free_mb}" for node in state.nodes if node.ram_free_mb < 0]
    return nodes + [
        f"{device.key} memory {device.memory_free_mb}, slots {device.slots_free}"
        for device in state.devices
        if device.memory_free_mb < 0 or device.slots_free < 0
    ]


def idle_beside_waiting(state: ClusterState, waiting: tuple[Allocation, ...], closing: frozenset[str]) -> list[str]:
    """Waiting allocations that fit somewhere now (``closing``: devices whose worker takes nothing new)."""
    found = []
    for allocation in waiting:
        req = allocation.requirements
        if req.labels or req.anti_affinity or (req.share and req.gpu_count > 1):
            continue  # whether these fit cannot be told from the snapshot alone
        for node in state.nodes:
            if len(node.cpu_cores_free) < req.cpu_cores or node.ram_free_mb < req.ram_mb:
                continue
            fitting = [
                device.key
                for device in node.devices
                if device.state == "ready"
                and device.is_gpu == req.on_gpu
                and device.memory_free_mb >= max(req.gpu_memory_mb, -(-device.memory_mb * req.share // 1000))
                and req.gpu_model.lower() in device.model.lower()
                and req.node in ("", node.node)
                and (
                    allocation.kind is Kind.MANUAL
                    or (device.worker and device.slots_free > 0 and device.key not in closing)
                )
            ]
            if len(fitting) >= req.gpu_count:
                found.append(f"{allocation.allocation_id} waits, but fits {', '.join(fitting)}")
    return found


def assert_right(ledger: Ledger) -> None:
    """The ledger's own check and this one agree that nothing is wrong."""
    assert ledger.verify() == []
    assert broken(ledger.snapshot(), ledger.held()) == []


def assert_empty(ledger: Ledger) -> None:
    """Nothing is held, waits or lies ahead, all capacity is free, and no record is left behind."""
    assert_right(ledger)
    state = ledger.snapshot()
    assert (state.delayed, state.waiting, state.on_hold, state.granted, state.running) == (0, 0, 0, 0, 0)
    for node in state.nodes:
        assert set(node.cpu_cores_free) == set(node.cpu_cores)
        assert node.ram_claimed_mb == 0
    for device in state.devices:
        assert (device.memory_claimed_mb, device.slots_free, device.allocations) == (0, device.slots, ())
    left = left_behind(ledger)
    assert not left, left


#: Families of keys that live on in an empty ledger: what is known of nodes and devices, counters, history.
_LASTING = ("meta", "nodes", "known", "node:", "dev:", "workers", "worker:", "ix:", "ff:", "classes", "runtimes",
            "peaks", "events", "tick", "t:", "journal", "j:", "once:", "answer:", "breaker", "duty:", "updates", "u:",
            "changes", "rejected", "forecast", "dates", "quotas", "demand", "reserved",
            "warm:")  # fmt: skip


def left_behind(ledger: Ledger) -> list[str]:
    """Keys of allocations that an empty ledger should not have."""
    prefix = f"{{allocator:{ledger.pool}}}:"
    names = [key.decode()[len(prefix) :] for key in ledger.client.scan_iter(match=f"{prefix}*", count=1000)]
    return [name for name in names if not name.startswith(_LASTING)]
