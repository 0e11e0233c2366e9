"""What tasks turn out to use, learned from real workers, and what ``auto`` makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from celery_allocator.errors import RequirementsError
from celery_allocator.ledger import Recommendation
from celery_allocator.overview import read_overview
from tests.support.cluster import SOON_S, Cluster, worker_spec
from tests.support.command_line import runner
from tests.support.fake_nvml import FakeNvml, fake_nvml, nvml_library
from tests.support.scripted_host import ScriptedHost

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

AUTO = {"gpu_memory_mb": "auto", "cpu_cores": 1}
pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Host(ScriptedHost):
    """A node with one scripted GPU of 8192 MB; a worker of one slot for it, and another for CPU-only work."""

    def __init__(self, new_cluster: Callable[..., Cluster], nvml: FakeNvml) -> None:
        super().__init__(new_cluster, nvml, 8192, ALLOCATOR_RAM_MB="16384")

    def start(self) -> None:
        self.cluster.start(*(worker_spec(name, gpu, "--concurrency", "1") for name, gpu in (("g", "0"), ("c", "none"))))

    @contextmanager
    def holding(self, resources: dict[str, object], mb: int) -> Iterator[int]:
        """A ``zoo.hold`` of which the driver says that it uses so much, and no more at its end; yields its claim."""
        cluster, key = self.cluster, self.cluster.key()
        task = cluster.app.send_task("zoo.hold", (key,), resources=resources)
        child, claimed = cluster.held_in(key), cluster.only(task.id).gpu_memory_mb
        # A process that the task has started, say: it is the child's family's.
        self.becomes((child, mb))
        cluster.until(lambda: mb in self._measured(), f"{mb} MB to be measured")
        self.becomes()
        cluster.until(lambda: mb not in self._measured(), "what was measured to be less")
        yield claimed
        cluster.let_go(key)
        task.get(timeout=SOON_S)
        cluster.settle()

    def _measured(self) -> list[int | None]:
        return [task.use.gpu_memory_mb for task in read_overview(self.cluster.ledger).running if task.use]

    def known(self, name: str) -> Recommendation:
        (found,) = self.cluster.ledger.recommend(name)
        return found


def test_what_runs_use_is_learned_and_auto_asks_for_it(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml
) -> None:
    host = Host(new_cluster, fake_nvml)
    cluster = host.cluster
    with pytest.raises(RequirementsError, match=r"no GPU is known.*allocator_auto_gpu_memory_mb"):
        cluster.app.send_task("zoo.hold", ("key",), resources=AUTO)
    host.start()

    # RAM and cores, as the task itself found them.
    sent = [
        cluster.app.send_task("zoo.use", (200, 1.0), resources={"cpu_cores": 2, "ram_mb": 4096}).get(timeout=SOON_S)
        for _ in range(3)
    ]
    cluster.settle()
    used = host.known("zoo.use")
    assert used.ram_mb is not None
    assert used.cpu_cores is not None
    assert used.gpu_memory_mb is None
    assert (used.ram_mb.runs, used.cpu_cores.runs) == (3, 3)
    told = max(one["ram_mb"] for one in sent)
    assert told > 200
    assert told - 10 <= used.ram_mb.most <= told + 100
    assert used.ram_mb.verdict == "much too large"
    # The worker begins to count a little earlier and ends later: it sees less where the machine is busy then.
    told = max(one["cpu_cores"] for one in sent)
    assert 0.5 * told <= used.cpu_cores.most <= 1.2 * told

    # GPU memory: the first runs get nearly all of the smallest GPU, and so does every one until three were measured.
    for resources, claim in ((AUTO, 7372), ({"gpu_memory_mb": 4000}, 4000), (AUTO, 7372)):
        with host.holding(resources, 3000) as claimed:
            assert claimed == claim
    with host.holding(AUTO, 5000) as claimed:
        assert claimed == 3584  # 3000 and 15 %, in steps of 256
    held = host.known("zoo.hold")
    assert held.gpu_memory_mb is not None
    assert (held.gpu_memory_mb.runs, held.gpu_memory_mb.most, held.gpu_memory_mb.verdict) == (4, 5000, "too small")
    with host.holding(AUTO, 100) as claimed:
        assert claimed == 5888

    # What the child of another task has left is not this one's.
    host.becomes(*((process.pid, 700) for process in psutil.Process().children(recursive=True)))
    cluster.app.send_task("zoo.sleep", (1.5,)).get(timeout=SOON_S)
    cluster.settle()
    assert host.known("zoo.sleep").gpu_memory_mb is None

    asked = cluster.app.amqp.router.route({"resources": {"ram_mb": "auto"}}, "zoo.use")["resources"]
    assert asked.ram_mb == used.suggested["ram_mb"]
    first = cluster.app.amqp.router.route({"resources": {"ram_mb": "auto"}}, "zoo.never")["resources"]
    assert first.ram_mb == int(16384 / (os.cpu_count() or 1) * 0.9)

    said = runner(cluster.backend, cluster.pool)("recommend", "zoo.*")
    assert "much too large" in said
    assert str(used.suggested["ram_mb"]) in said
