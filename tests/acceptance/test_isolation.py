"""What a task finds in its process, and what becomes of it when it runs out of GPU memory: in real workers.

The frameworks are those of ``fake_cuda``, the GPU is one of ``fake_nvml``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_allocator.isolation.threads import VARIABLES
from celery_allocator.model import Kind, Requirements, State
from celery_allocator.overview import read_overview
from tests.support.cluster import SOON_S, Cluster
from tests.support.fake_cuda import SITE, cuda_library
from tests.support.fake_nvml import FakeGpu, FakeNvml, become, fake_nvml, nvml_library, scripted
from tests.support.process_nodes import WorkerSpec
from tests.support.processes import ROOT
from tests.support.redis_server import RedisServer

__all__ = ["cuda_library", "fake_nvml", "nvml_library"]  # fixtures

_MODULE = "tests.support.gpu_app"
UUID, OTHER, TOTAL_MB = "GPU-aaaa", "GPU-bbbb", 8192
pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Host:
    """A node with scripted GPUs, and a worker with one child for each."""

    def __init__(
        self, make: Callable[..., Cluster], nvml: FakeNvml, cuda: Path, *args: str, gpus: int = 1, **env: str
    ) -> None:
        self._uuids = (UUID, OTHER)[:gpus]
        self._environ = environ = nvml.environ([FakeGpu(uuid, memory_mb=TOTAL_MB) for uuid in self._uuids])
        host = {
            "ALLOCATOR_NODE": "host1",
            "ALLOCATOR_DEVICES": "auto",
            "ALLOCATOR_OOM_GROWTH": "4",
            "FAKE_NVML_SCRIPT": environ["FAKE_NVML_SCRIPT"],
            "LD_LIBRARY_PATH": os.pathsep.join((environ["LD_LIBRARY_PATH"], str(cuda))),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(SITE))),
            **env,
        }
        self.cluster = make(host=host, module=_MODULE)
        options = ("--concurrency", "1", *args)
        self.cluster.start(*(WorkerSpec(_MODULE, ("--gpu", f"{n}", *options), name=f"gpu{n}") for n in range(gpus)))

    def send(self, name: str, *args: Any, claim: int = 1024, **need: int) -> Any:
        return self.cluster.app.send_task(name, args, resources={"gpu_memory_mb": claim, "cpu_cores": 1, **need})

    def script(self, *processes: tuple[int, int]) -> str:
        """What the driver tells if one process uses each GPU: its id, and MB."""
        gpus = zip(self._uuids, processes, strict=True)
        return scripted([FakeGpu(uuid, memory_mb=TOTAL_MB, processes=(process,)) for uuid, process in gpus])

    def becomes(self, *processes: tuple[int, int]) -> None:
        """It tells so from now on."""
        become(self._environ, self.script(*processes))

    def overuse_of(self, task_id: str) -> tuple[str, ...]:
        """Resource, MB promised and used, as the event stream has it, once."""
        found = lambda: [event for event in self.events_of(task_id) if event["event"] == "overuse"]  # noqa: E731
        self.cluster.until(found, "it to be told")
        (told,) = found()
        return told["resource"], told["promised_mb"], told["used_mb"]

    def take(self, framework: str, mb: int, claim: int) -> dict[str, Any]:
        told: dict[str, Any] = self.send("gpu.take", framework, mb, claim=claim).get(timeout=SOON_S)
        return told

    def events_of(self, task_id: str) -> list[dict[str, str]]:
        return [fields for _, fields in self.cluster.ledger.events() if fields.get("task") == task_id]

    def life_of(self, task_id: str) -> list[dict[str, str]]:
        """The events of a task, to its end; without its first wait for the one before, and what is kept for it then."""
        self.cluster.until(lambda: self.events_of(task_id)[-1]["event"] == "released", "its end")
        return [event for event in self.events_of(task_id) if event["event"] not in ("waiting", "reserved")]


@pytest.fixture(scope="module")
def shared_host(
    broker_url: str,
    cluster_backend: RedisServer,
    nvml_library: Path,
    cuda_library: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("isolation")
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        made.append(Cluster(broker_url, cluster_backend, folder, **options))
        return made[-1]

    try:
        yield Host(make, FakeNvml(nvml_library, folder), cuda_library)
    finally:
        made[-1].close()


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """The shared host for one test, which has to leave it empty."""
    yield shared_host
    shared_host.cluster.settle()


def out_of_memory(host: Host) -> None:
    """Declares 1 GB and needs 3; and one that needs more than there is."""
    sent = host.send("gpu.take", "torch", 3000)
    told = sent.get(timeout=SOON_S)
    assert (told["claim"], told["most"]) == (4096, 4096 - 512)
    events = host.life_of(sent.id)
    assert [e["event"] for e in events] == ["granted", "started", "grown", "granted", "started", "released"]
    assert (events[2]["from"], events[2]["to"], events[2]["oom_retries"]) == ("1024", "4096", "1")
    assert (events[3]["shape"], events[5]["outcome"]) == ("4096:1:0:t", "success")

    impossible = host.send("gpu.take", "torch", TOTAL_MB + 1)
    impossible.wait(timeout=SOON_S, propagate=False)
    assert (impossible.status, type(impossible.result).__name__) == ("FAILURE", "OutOfMemoryError")
    assert "CUDA out of memory. Tried to allocate 8193.00 MiB." in str(impossible.result)
    assert "it had 8192 MB, and was granted again with a larger claim as often as it may be (2," in impossible.traceback
    events = host.life_of(impossible.id)
    claims = [e["shape"].split(":")[0] for e in events if e["event"] == "granted"]
    assert claims == ["1024", "4096", "8192"]
    assert events[-1]["error"] == "OutOfMemoryError"


def test_out_of_gpu_memory_is_granted_again_with_a_larger_claim(host: Host) -> None:
    out_of_memory(host)
    # CuPy's is a MemoryError, at which a worker of Celery would exit.
    assert host.take("cupy", 3000, 1024)["claim"] == 4096
    once = host.send("gpu.once", "torch", 3000)
    once.wait(timeout=SOON_S, propagate=False)
    assert type(once.result).__name__ == "OutOfMemoryError"
    assert [e["event"] for e in host.life_of(once.id)] == ["granted", "started", "released"]
    retried = host.send("gpu.retry", 3000)
    assert retried.get(timeout=SOON_S) == 4096 - 512
    told = [(e["event"], e.get("outcome")) for e in host.life_of(retried.id) if e["event"] in ("grown", "released")]
    assert told == [("released", "retry"), ("grown", None), ("released", "success")], "its own retry comes first"


def test_while_it_waits_with_a_larger_claim_everybody_can_see_it(host: Host) -> None:
    """Another one holds what it needs: it waits first in line, and its result says nothing yet."""
    ledger = host.cluster.ledger
    ledger.submit("hand", "by hand", "hand", Requirements(gpu_memory_mb=5000), kind=Kind.MANUAL, ttl_s=600)
    sent = host.send("gpu.take", "torch", 3000)
    host.cluster.until(lambda: len(host.events_of(sent.id)) > 2 and ledger.queue(), "it in line")
    (waiting,) = ledger.queue()
    assert (waiting.state, waiting.gpu_memory_mb, waiting.oom_retries) == (State.WAITING, 4096, 1)
    assert not sent.ready()
    ledger.release("hand", publishes=False)
    assert sent.get(timeout=SOON_S)["claim"] == 4096


def test_caps_and_threads_are_the_tasks_and_put_back_after_it(host: Host) -> None:
    """One after the other in one child, which tells what it finds."""
    threads = dict.fromkeys(VARIABLES, "1")
    first = host.take("torch", 100, 4096)
    assert first["most"] == 4096 - 512, "read from the environment when it was first used"
    assert first["affinity"] == first["cores"] or len(os.sched_getaffinity(0)) == 1
    assert threads.items() <= first["environ"].items()
    assert first["environ"]["CUDA_VISIBLE_DEVICES"] == UUID
    second = host.take("torch", 100, 2048)
    assert (second["pid"], second["most"], second["torch_threads"]) == (first["pid"], 2048 - 512, 1)
    assert host.take("torch", 100, 600)["most"] == 300, "half of a claim at least"
    whole = host.take("torch", 100, TOTAL_MB)
    assert whole["most"] == TOTAL_MB, "the last one's cap was taken back"
    assert not any(name.endswith(("_CONF", "_LIMIT", "_FRACTION")) for name in whole["environ"])
    assert host.take("cupy", 100, 2048)["most"] == 2048 - 512
    assert host.take("cupy", 100, 4096)["most"] == 4096 - 512
    assert host.take("cupy", 100, TOTAL_MB)["most"] == 0, "no limit"
    # JAX keeps what it had at first: who has claimed more gets a fresh child.
    jax = host.take("jax", 0, 2048)
    assert (jax["pid"], jax["most"]) == (first["pid"], 2048 - 512)
    assert host.take("jax", 0, 1024)["pid"] == first["pid"]
    more = host.send("gpu.take", "jax", 0, claim=4096)
    told = more.get(timeout=SOON_S)
    assert (told["pid"] != first["pid"], told["most"]) == (True, 4096 - 512)
    events = [e["event"] for e in host.life_of(more.id)]
    assert events == ["granted", "started", "requeued", "granted", "started", "released"]


def test_a_task_on_two_gpus_sees_exactly_those(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml, cuda_library: Path
) -> None:
    """CUDA shows a process what it showed it first: whoever needs something else gets a fresh one."""
    often = {"ALLOCATOR_MEASURE_S": "0.1", "ALLOCATOR_HEARTBEAT_S": "0.1"}
    host = Host(new_cluster, fake_nvml, cuda_library, gpus=2, **often)
    told = []
    for count in (1, 2, 2, 1):
        sent = host.send("gpu.take", "torch", 100, claim=2048, gpu_count=count)
        told.append(sent.get(timeout=SOON_S))
        events = [event["event"] for event in host.life_of(sent.id)]
        again = ["requeued", "granted", "started"] if len(told) in (2, 4) else []
        assert events == ["granted", "started", *again, "released"]
    both = f"{UUID},{OTHER}"
    assert [each["environ"]["CUDA_VISIBLE_DEVICES"] for each in told] == [UUID, both, both, UUID]
    one, two, still_two, one_again = (each["pid"] for each in told)
    assert two == still_two
    assert len({one, two, one_again}) == 3
    assert {each["most"] for each in told} == {2048 - 512}
    watched_on_both(host)
    host.cluster.settle()


def watched_on_both(host: Host) -> None:
    """The claim is of each GPU, and so is what is used beyond it."""
    key = host.cluster.key()
    sent = host.send("gpu.hold", key, "", claim=2048, gpu_count=2)
    child = host.cluster.held_in(key)
    host.becomes((child, 2000), (child, 3000))
    assert host.overuse_of(sent.id) == ("gpu_memory_mb", "2048", "3000")
    host.becomes((child, 2000), (child, 1500))
    host.cluster.let_go(key)
    sent.get(timeout=SOON_S)
    # The next one finds that, and takes more at once. While it was idle nobody has looked at the other GPU.
    uses = lambda: [device.use for device in read_overview(host.cluster.ledger).devices]  # noqa: E731
    host.cluster.until(lambda: any(use and use.gpu_memory_idle_mb == 2000 for use in uses()), "it to be seen idle")
    grown = host.script((child, 2000), (child, 1500 + 2500))
    sent = host.send("gpu.hold", key, grown, claim=2048, gpu_count=2)
    assert host.cluster.held_in(key) == child
    assert host.overuse_of(sent.id) == ("gpu_memory_mb", "2048", "2500")
    host.cluster.let_go(key)
    sent.get(timeout=SOON_S)


def test_a_spawned_child_has_all_of_it(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml, cuda_library: Path
) -> None:
    host = Host(new_cluster, fake_nvml, cuda_library, "--pool-start-method", "spawn", GPU_APP_USES_CUDA="1")
    out_of_memory(host)
    told = host.take("cupy", 100, 2048)
    assert told["most"] == 2048 - 512
    assert told["environ"]["CUDA_VISIBLE_DEVICES"] == UUID
    assert told["affinity"] == told["cores"] or len(os.sched_getaffinity(0)) == 1
    host.cluster.settle()


def test_a_worker_that_would_fork_with_cuda_refuses(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml, cuda_library: Path
) -> None:
    with pytest.raises(AssertionError, match="has initialised CUDA"):
        Host(new_cluster, fake_nvml, cuda_library, GPU_APP_USES_CUDA="1")
