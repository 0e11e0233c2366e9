"""Three busy days, the same every time: what a report of a real pool may look like."""

from __future__ import annotations

import random
from collections.abc import Iterator

from celery_allocator.history.entry import Entry
from tests.history.made import BEGAN, entry

HOURS = 72
#: Name, tenant, GPU MB, share of it used, mean run (minutes), device.
_TASKS = (
    ("shop.infer", "search", 6144, 0.7, 4, "host1/gpu_0"),
    ("shop.train", "research", 40960, 0.9, 60, "host2/gpu_0"),
    ("video.render", "media", 12288, 0.5, 35, "host1/gpu_1"),
    ("shop.embed", "search", 3072, 0.4, 9, "host1/gpu_0"),
    ("audio.split", "media", 4096, 0.8, 12, "host1/gpu_1"),
    ("etl.clean", "data", 0, 0.0, 3, "host1/cpu"),
    ("<script>alert(document.domain)</script>", "media", 2048, 0.3, 5, "host1/gpu_0"),
)


def entries() -> list[Entry]:
    """Its events in the stream's order."""
    told = sorted(_told(random.Random(4)), key=lambda item: item[2])
    return [entry(number, event, name, at=ms, **fields) for number, (event, name, ms, fields) in enumerate(told)]


def _told(chance: random.Random) -> Iterator[tuple[str, str, int, dict[str, object]]]:
    for node, memory in (("host1", "gpu_0:24576 gpu_1:24576"), ("host2", "gpu_0:81920")):
        yield "node", node, 0, {"gpu_memory_mb": memory, "cores": 32, "ram_mb": 262144}
        for device in [part.partition(":")[0] for part in memory.split()]:
            yield "worker", f"w.{node}.{device}", 0, {"device": f"{node}/{device}", "slots": 4}
    free = {device: 0 for *_, device in _TASKS}
    for number, at in enumerate(sorted(int(chance.uniform(0, HOURS) * 3_600_000) for _ in range(420))):
        name, tenant, gpu_mb, used, minutes, device = chance.choice(_TASKS)
        begin = max(at + int(chance.lognormvariate(0, 2) * 1000), free[device] if gpu_mb > 10_000 else 0)
        run_ms = int(chance.expovariate(1 / minutes) * 60_000) + 2_000
        end = begin + run_ms
        if gpu_mb > 10_000:
            free[device] = end
        held = {"device": device, "token": number, "cores": "0,1", "name": name}
        new = {"new": 1, "shape": f"{gpu_mb}:2:4096:t", "priority": 1, "strategy": "best_fit", "tenant": tenant}
        task = f"task-{number}"
        yield "waiting", task, at, {**new, "name": name, "position": 1, "estimate": BEGAN + begin + 60_000}
        yield "granted", task, begin, held
        yield "started", task, begin + 200, {**held, "worker": f"w.{device}"}
        outcome = "success" if chance.random() < 0.93 else "failure"
        peak = {"peak_gpu_mb": int(gpu_mb * used * chance.uniform(0.8, 1.0))} if gpu_mb else {}
        yield "released", task, end, {**held, "outcome": outcome, "held_ms": run_ms, **peak}
