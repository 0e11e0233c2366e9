"""A pool with something of everything on it: for tests that look, and for the picture in the docs."""

from __future__ import annotations

from celery_allocator.model import TaskUse, WorkerUse
from tests.terminal.conftest import LivePool

#: GPU MB, cores, RAM MB, name, share of the claim that is really used.
_RUNNING = (
    (8192, 2, 8192, "shop.infer", 1.2),
    (12288, 4, 16384, "shop.train", 0.7),
    (40960, 8, 65536, "research.finetune", 0.7),
    (4096, 1, 2048, "media.render", 0.6),
    (24576, 4, 32768, "research.evaluate", 0.5),
    (0, 2, 1024, "etl.clean", 0.0),
)


def uuid(number: int) -> str:
    """A task's id like Celery's."""
    return f"{number:08x}-77aa-4c1b-9e1d-{number:012x}"


def fill(cluster: LivePool, waiting: int = 12) -> None:
    """Two hosts with three GPUs, six running tasks and so many waiting ones, one of them on hold; all measured."""
    cluster.node("host1", gpus=(24576, 24576), cores=16, ram=131072, lease_s=600)
    cluster.node("host2", gpus=(81920,), cores=32, ram=262144, lease_s=600)
    for number, (gpu, cores, ram, name, _) in enumerate(_RUNNING):
        cluster.running(gpu, cores, ram, id=f"alloc_run{number}", task_id=uuid(number), task_name=name)
    for number in range(waiting):
        cluster.submit(
            81920 if number % 2 else 49152,
            4,
            8192,
            priority=5 if number < 2 else 0,
            id=f"alloc_wait{number}",
            task_id=uuid(1000 + number),
            task_name="research.finetune" if number % 2 else "shop.train",
        )
    cluster.submit(81920, 1, id="alloc_held", task_id=uuid(99), task_name="media.render")
    cluster.ledger.hold("alloc_held")
    measure(cluster)


def measure(cluster: LivePool) -> None:
    """What the workers' heartbeats tell of their devices; 1500 MB of each GPU are somebody else's."""
    held = {allocation.allocation_id: allocation for allocation in cluster.ledger.held()}
    shares = {name: share for _, _, _, name, share in _RUNNING}
    for device in cluster.ledger.snapshot().devices:
        mine = [held[name] for name in device.allocations]
        tasks = tuple(
            TaskUse(a.allocation_id, int(a.gpu_memory_mb * shares.get(a.task_name, 0)), a.ram_mb // 2) for a in mine
        )
        ours = sum(task.gpu_memory_mb or 0 for task in tasks)
        ram = sum(task.ram_mb or 0 for task in tasks)
        busy = bool(mine)
        gpu = (ours + 1500, ours, 0.83 if busy else 0.02, 64 if busy else 35, 240.0 if busy else 30.0)
        use = WorkerUse(0, *(gpu if device.is_gpu else (None,) * 5), 40_000, ram, tasks)
        assert cluster.ledger.heartbeat(device.worker or "", "one", 600, use)
