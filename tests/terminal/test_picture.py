"""The picture of the live screen in the docs: ``UPDATE_SCREENSHOTS=1`` writes it anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

import redis

from celery_allocator.allocating import Session
from celery_allocator.ledger import Ledger
from celery_allocator.model import Quota, TaskUse, WorkerUse
from celery_allocator.operations import Actor, Cordon, Operator
from celery_allocator.settings import Settings
from tests.support.ledger_pool import LedgerPool
from tests.support.processes import ROOT
from tests.terminal.piloted import piloted, run
from tests.terminal.scene import uuid

#: Longer than the day that the picture tells of.
_LEASE_S = 1e7
#: Name, GPU MB, cores, RAM MB, minutes it runs by then, share of the claim that is used.
_RUNNING = (
    ("research.finetune", 61440, 12, 131072, 171, 0.91),
    ("shop.train", 40960, 8, 65536, 64, 0.74),
    ("shop.train", 40960, 8, 65536, 43, 1.07),
    ("research.evaluate", 24576, 4, 32768, 22, 0.55),
    ("shop.infer", 8192, 2, 8192, 6, 0.82),
    ("shop.infer", 8192, 2, 8192, 3, 0.79),
    ("media.render", 12288, 4, 16384, 1, 1.4),
    ("etl.clean", 0, 4, 4096, 1, 0.0),
)


class _Ledger(Ledger):
    """Under an address that is no test's."""

    @property
    def url(self) -> str:
        return "redis://ledger:6379/0"


def _day(cluster: LedgerPool) -> None:
    """Two hosts that have worked all day, and a line before them."""
    cluster.node("host1", gpus=(24576, 24576), cores=32, ram=131072, lease_s=_LEASE_S)
    cluster.node("host2", gpus=(81920, 81920), cores=64, ram=524288, lease_s=_LEASE_S)
    cluster.ledger.set_tenant("research", Quota(weight=2))
    cluster.ledger.set_tenant("media", Quota(gpu_memory_mb=16_384, tasks=4))
    times = (
        ("shop.train", 40960, 48),
        ("research.finetune", 61440, 95),
        ("shop.infer", 8192, 7),
        ("media.render", 4096, 9),
    )
    for name, gpu, minutes in times * 3:
        done = cluster.running(gpu, 4, 8192, task_name=name)  # so that it is known how long they take
        cluster.at += minutes * 60
        assert cluster.ledger.release(done.allocation_id, done.token, "success").done
    _dated(cluster)
    end = cluster.at + 3 * 3600
    for number, (name, gpu, cores, ram, minutes, _) in enumerate(_RUNNING):
        cluster.at = end - minutes * 60
        more = {"task_name": name, "task_id": uuid(0x5A17C3E0 + 77 * number), "tenant": name.partition(".")[0]}
        cluster.running(gpu, cores, ram, id=f"alloc_{number}", **more)
    for number in range(9):
        cluster.at = end - (9 - number) * 137
        name, gpu = (("shop.train", 40960), ("research.finetune", 61440), ("research.finetune", 61440))[number % 3]
        asked = (gpu, 8, 65536, 10 if number == 1 else 0)
        more = {"task_name": name, "task_id": uuid(0x61C0FFEE + 91 * number), "tenant": name.partition(".")[0]}
        cluster.submit(*asked, id=f"alloc_{uuid(number)}", **more)
    cluster.submit(
        8192, 4, 16384, task_name="media.render", task_id=uuid(0x62A0BEEF), tenant="media", id="alloc_capped"
    )
    cluster.at = end
    Operator(cluster.ledger, Actor("ada")).run(Cordon("host1/gpu_1"))
    _measure(cluster)


def _dated(cluster: LedgerPool) -> None:
    """Some that had to wait have started: so their dates are scored."""
    name = {"task_name": "shop.train", "gpu": 61440, "cores": 4}
    running = [cluster.running(**name) for _ in range(2)]
    for number in range(24):
        cluster.submit(**name, id=f"dated{number}")
        cluster.at += (21 + 7 * (number % 3)) * 60
        assert cluster.ends(running.pop(0).allocation_id) == [f"dated{number}"]
        running.append(cluster.start(cluster.ledger.get(f"dated{number}")))
    for last in running:
        cluster.ends(last.allocation_id)


def _measure(cluster: LedgerPool) -> None:
    held = {allocation.allocation_id: allocation for allocation in cluster.ledger.held()}
    shares = {f"alloc_{number}": share for number, (*_, share) in enumerate(_RUNNING)}
    for place, device in enumerate(cluster.ledger.snapshot().devices):
        mine = [held[name] for name in device.allocations]
        tasks = tuple(
            TaskUse(a.allocation_id, int(a.gpu_memory_mb * shares.get(a.allocation_id, 0.7)), int(a.ram_mb * 0.6))
            for a in mine
        )
        ours = sum(task.gpu_memory_mb or 0 for task in tasks)
        load = min(0.97, 0.03 + 0.31 * len(mine) + 0.04 * place)
        foreign = 3_900 if device.key == "host1/gpu_0" else 450
        seen = (ours + foreign, ours, load, 38 + int(40 * load), 60 + 260 * load) if device.is_gpu else (None,) * 5
        use = WorkerUse(0, *seen, 61_000, sum(task.ram_mb or 0 for task in tasks), tasks)
        cluster.ledger.heartbeat(device.worker or "", "one", _LEASE_S, use)


def test_the_picture_of_the_docs(ledger_client: redis.Redis, reach: dict[str, str], tmp_path: Path) -> None:
    cluster = LedgerPool(ledger_client, "research")
    _day(cluster)
    ledger = _Ledger(ledger_client, "research", clock=lambda: cluster.at)
    folder = ROOT / "docs" / "images" if os.environ.get("UPDATE_SCREENSHOTS") else tmp_path

    async def act() -> None:
        session = Session(Settings(pool="research"), ledger)
        async with piloted(reach, size=(120, 36), session=session, actor=Actor("ada", "cli")) as top:
            await top.wait_for("8 running", "10 waiting", "cordoned", "4 tenants", "◆")
            await top.press("down")
            await top.wait_for("Lacks GPU memory", "is kept for it until")
            drawn = top.app.export_screenshot(title="celery-allocator top", simplify=True)
            # Of fonts that would be fetched from elsewhere the reader's own take the place.
            (folder / "top.svg").write_text(re.sub(r"@font-face\s*{[^}]*}", "", drawn), encoding="utf-8")

    run(act)
    drawn = (folder / "top.svg").read_text(encoding="utf-8")
    assert "research.finetune" in drawn
    assert not re.search(r"url\((?!#)|<script|href=", drawn)
