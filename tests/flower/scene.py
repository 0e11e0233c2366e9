"""A ledger that looks like a busy day: several nodes, foreign memory, overuse, a long line; no worker is real."""

from __future__ import annotations

from typing import Any

from celery_allocator.ledger import Ledger
from celery_allocator.model import (
    DeviceInventory,
    NodeInventory,
    Peaks,
    Quota,
    RamUse,
    Requirements,
    TaskUse,
    Withheld,
    WorkerUse,
)
from celery_allocator.operations import Actor, Drain, Operator

LEASE_S = 3600.0
#: A name that would be markup, if it were not text.
EVIL = "<script>document.title='owned'</script>"


def node(ledger: Ledger, name: str, gpus: int, *, cores: int = 32, memory_mb: int = 81920, slots: int = 4) -> None:
    """Register a node with its workers."""
    model = "NVIDIA A100-SXM4-80GB" if memory_mb > 50_000 else "NVIDIA L4"
    devices = tuple(DeviceInventory(f"gpu_{i}", i, f"GPU-{name}-{i}", model, memory_mb) for i in range(gpus))
    ledger.register_node(NodeInventory(name, tuple(range(cores)), 8 * cores * 1024, devices), LEASE_S)
    for device in [*(d.device_id for d in devices), "cpu"]:
        where = {"slots": slots, "queue": f"allocator.{ledger.pool}.{name}.{device}", "lease_s": LEASE_S}
        ledger.register_worker(f"{device}@{name}", "one", name, device, **where)  # type: ignore[arg-type]


def task(ledger: Ledger, number: int, name: str, gpu_mb: int, cores: int = 2, ram: int = 4096, **more: Any) -> bool:
    """Submit a task, and start it where it is granted; returns whether it was."""
    asked = Requirements(gpu_mb, cores, ram, **more)
    made = ledger.submit(f"alloc_{number:032x}", f"{number:08x}-0000-4000-8000-000000000000", name, asked, message=b"-")
    allocation = made.allocation
    if allocation.device_id is None:
        return False
    begin(ledger, number)
    return True


def begin(ledger: Ledger, number: int) -> None:
    """Start the task of that number, which was granted."""
    a = ledger.get(f"alloc_{number:032x}")
    ledger.start(a.allocation_id, a.token, f"{a.device_id}@{a.node}", "one", "n", repeatable=True)


def dated(ledger: Ledger, gpu: int, starts: int) -> None:
    """So many tasks that had to wait have started, and ended."""
    task(ledger, 1000, "speech.transcribe", gpu, expected_runtime_s=20)
    for number in range(1001, 1001 + starts):
        assert not task(ledger, number, "speech.transcribe", gpu, expected_runtime_s=20)
        (held,) = ledger.held()
        ledger.release(held.allocation_id, held.token, "failure")
        begin(ledger, number)
    (last,) = ledger.held()
    ledger.release(last.allocation_id, last.token, "failure")


def busy_day(ledger: Ledger) -> None:
    """Two nodes of A100s, one of L4s that is cordoned; most is taken, and some use what is not theirs."""
    node(ledger, "edge-1", 2, cores=8, memory_mb=24576, slots=2)
    ledger.set_state("edge-1/gpu_1", "cordoned")
    dated(ledger, 24576, 8)
    ledger.set_state("edge-1/gpu_1", "ready")
    node(ledger, "gpu-node-1", 4)
    node(ledger, "gpu-node-2", 4)
    ledger.set_tenant("llm", Quota(weight=2))
    ledger.set_tenant("vision", Quota(gpu_memory_mb=69_632, tasks=20))
    done = task(ledger, 1, "speech.transcribe", 8192)
    assert done
    first = ledger.held()[0]
    ledger.release(first.allocation_id, first.token, "success")
    names = (
        ("llm.generate", 40960, 4),
        ("vision.caption", 16384, 2),
        ("speech.transcribe", 8192, 2),
        ("train.lora", 61440, 8),
    )
    for number in range(2, 30):
        name, gpu, cores = names[number % len(names)]
        task(ledger, number, name, gpu, cores, 16384 if number % 3 else 8192, **_whose(name))
    task(ledger, 40, EVIL, 2048, 1, tenant="train")
    for number in range(41, 60):
        name = ("train.lora", "llm.generate")[number % 2]
        task(ledger, number, name, 65536 - 8192 * (number % 3), 6, 32768, priority=number % 4, **_whose(name))
    task(ledger, 60, "speech.transcribe", 4096, **_whose("speech.transcribe"))
    ledger.hold("alloc_" + f"{45:032x}", by="ada@example.org")
    ledger.set_state("edge-1", "cordoned")
    ledger.tick()
    measure(ledger)


def _whose(name: str) -> dict[str, Any]:
    """Whom a task is for, and how long it takes."""
    tenant = name.partition(".")[0]
    return {"tenant": tenant, "expected_runtime_s": {"llm": 900, "vision": 300, "speech": 120, "train": 5400}[tenant]}


def turns(ledger: Ledger) -> None:
    """Two tenants; a device that is kept for the first in line for ten minutes; who waits for that, who for a cap."""
    ledger.set_tenant("vision", Quota(weight=2, gpu_memory_mb=66_000, tasks=8))
    node(ledger, "n2", 1, memory_mb=24576)
    task(ledger, 201, "vision.caption", 24576, expected_runtime_s=30, tenant="vision")
    task(ledger, 202, "vision.caption", 24576, expected_runtime_s=3600, tenant="vision")
    first = ledger.held()[0]
    ledger.release(first.allocation_id, first.token, "success")
    begin(ledger, 202)
    node(ledger, "n1", 1)
    task(ledger, 203, "vision.embed", 40960, expected_runtime_s=600, tenant="vision")
    task(ledger, 204, "llm.train", 65536, expected_runtime_s=7200, tenant="text")
    task(ledger, 205, "llm.evaluate", 20480, expected_runtime_s=36000, tenant="text")
    task(ledger, 206, "vision.caption", 8192, expected_runtime_s=60, tenant="vision")


def hardware(ledger: Ledger) -> None:
    """MIG slices, a GPU that has failed, others' memory, a task on two GPUs, shares, overuse, runs learned from."""
    names = ("gpu_0_mig_0", "gpu_0_mig_1", "gpu_1", "gpu_2", "gpu_3")
    devices = tuple(
        DeviceInventory(name, int(name[4]), f"{'MIG' if 'mig' in name else 'GPU'}-{name}", "NVIDIA H100 80GB HBM3",
                        20_480 if "mig" in name else 81_920, parent_uuid="GPU-gpu_0" if "mig" in name else None)
        for name in names
    )  # fmt: skip
    ledger.register_node(NodeInventory("h1", tuple(range(32)), 262_144, devices), LEASE_S)
    for name in names:
        where = {"slots": 2, "queue": f"q.{name}", "lease_s": LEASE_S}
        ledger.register_worker(f"{name}@h1", "one", "h1", name, **where)  # type: ignore[arg-type]
    others = [name for name in names if name != "gpu_1"]
    for name in others:
        ledger.set_state(f"h1/{name}", "cordoned")
    task(ledger, 1, "llm.shared", 0, gpu=0.25, gpu_model="NVIDIA H100 80GB HBM3", node="h1", affinity="sdxl")
    (shared,) = ledger.held()
    where = f"h1/{shared.device_id}"
    foreign = Withheld(9_000, 1_500, 500)
    ledger.withhold(f"{shared.device_id}@h1", "one", where, foreign, RamUse(40_000, 10_000))
    for name in others:
        ledger.set_state(f"h1/{name}", "ready")
    task(ledger, 2, "train.pair", 61_440, 8, gpu_count=2)
    task(ledger, 3, "llm.shared", 0, gpu=0.25, affinity="sdxl")
    Operator(ledger, Actor("worker:gpu_3@h1", "worker", "Xid 79: the GPU has fallen off the bus"), lambda _: None).run(
        Drain("h1/gpu_3")
    )
    use = TaskUse(shared.allocation_id, shared.gpu_memory_mb + 500, 700, gpu_memory_over_mb=500, ram_over_mb=0)
    ours = shared.gpu_memory_mb + 2_000
    told = WorkerUse(0.0, ours + 9_000, ours, 0.5, 60, 200.0, 50_000, 10_000, (use,))
    ledger.heartbeat(f"{shared.device_id}@h1", "one", LEASE_S, told)
    ledger.learn_peaks("llm.shared", [Peaks(9_000, 900, 0.5)] * 5, Peaks(81_920, 1_000, 1))
    ledger.learn_peaks("train.pair", [Peaks(70_000, 900, 7.9)] * 5, Peaks(61_440, 4_096, 8))


def measure(ledger: Ledger) -> None:
    """What the workers would have measured: mostly less than promised; here and there foreign memory, or more."""
    held = ledger.held()
    for at, worker in enumerate(ledger.snapshot().workers):
        ours = [a for a in held if (a.node, a.device_id) == (worker.node, worker.device_id)]
        share = (85, 60, 95, 112, 90)[at % 5]
        uses = tuple(TaskUse(a.allocation_id, a.gpu_memory_mb * share // 100, a.ram_mb * 70 // 100 + 300) for a in ours)
        used = sum(use.gpu_memory_mb or 0 for use in uses)
        gpu = worker.device_id != "cpu"
        foreign = 9_000 if gpu and at % 5 == 1 and worker.node != "edge-1" else 0
        use = WorkerUse(
            0.0,
            used + foreign if gpu else None,
            used if gpu else None,
            (20 + 17 * at % 75) / 100 if gpu else None,
            48 + 3 * at % 30 if gpu else None,
            120.0 + 23 * at % 200 if gpu else None,
            96_000 if "gpu-node" in worker.node else 20_000,
            sum(use.ram_mb or 0 for use in uses) + 400,
            uses,
        )
        ledger.heartbeat(worker.worker, "one", LEASE_S, use)
