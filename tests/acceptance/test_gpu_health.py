"""GPUs that fail under real workers, told through the real ``pynvml`` over a scripted library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError

from celery_allocator.operations import Actor, Cordon, Operator, Uncordon
from celery_allocator.overview import explain
from tests.support import fake_nvml as codes
from tests.support.cluster import MODULE, SOON_S, Cluster, worker_spec
from tests.support.fake_nvml import FakeDriver, FakeGpu, FakeNvml, FakeSlice, fake_nvml, nvml_library
from tests.support.processes import ROOT

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)

_GPU = FakeGpu("GPU-aaaa", "NVIDIA A100-SXM4-40GB", memory_mb=8192, ecc=0, rows=(False, False), recovery=0)
_SLICED = FakeGpu(
    "GPU-bbbb",
    "NVIDIA A100-SXM4-40GB",
    memory_mb=40960,
    slices=(FakeSlice("MIG-1111", memory_mb=9728), FakeSlice("MIG-2222", memory_mb=20096, number=1, instance=2)),
)


class Host:
    """A node with scripted GPUs, the first of 8192 MB, and workers of two slots."""

    def __init__(self, new_cluster: Callable[..., Cluster], nvml: FakeNvml, *gpus: FakeGpu) -> None:
        self._nvml, self._gpus = nvml, gpus
        self._environ = nvml.environ(gpus)
        library = {key: self._environ[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_SCRIPT")}
        often = {"ALLOCATOR_HEALTH_S": "0.1", "ALLOCATOR_HEARTBEAT_S": "0.1"}
        self.cluster = new_cluster(host={"ALLOCATOR_NODE": "host1", "ALLOCATOR_DEVICES": "auto", **library, **often})

    def becomes(self, *gpus: FakeGpu, **driver: Any) -> None:
        self._nvml.change(self._environ, gpus or self._gpus, driver=FakeDriver(**driver))

    def wait_for(self, state: str, reason: str = "", device: str = "gpu_0") -> str:
        """Until the device is in that state, for a reason that begins so. Returns the whole reason."""

        def is_so() -> bool:
            now = self.cluster.device(device)
            return now.state == state and now.reason.startswith(reason) and (bool(reason) or not now.reason)

        self.cluster.until(is_so, f"{device} to be {state} ({reason})")
        return self.cluster.device(device).reason

    def operator(self, reason: str = "") -> Operator:
        return Operator(self.cluster.ledger, Actor("ada", reason=reason))

    def command(self, *args: str) -> str:
        return subprocess.check_output(
            [sys.executable, "-m", "celery", "-A", MODULE, "allocator", *args],
            env=self.cluster.environment(),
            cwd=ROOT,
            text=True,
            timeout=60,
        )


def test_tasks_of_a_lost_gpu_go_elsewhere_or_fail_visibly(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml
) -> None:
    """Two A100s, MIG on one: what the lost one ran is killed, and what may be repeated runs on a slice of the other."""
    host = Host(new_cluster, fake_nvml, _GPU, _SLICED)
    cluster = host.cluster
    cluster.start(worker_spec("gpu0", "0"), worker_spec("slice", "1:0"))
    assert {d.device_id: d.memory_mb for d in cluster.ledger.snapshot().devices} == {
        "gpu_0": 8192, "gpu_1_mig_0": 9728, "gpu_1_mig_1": 20096, "cpu": 0,
    }  # fmt: skip
    late_key, key = cluster.key(), cluster.key()
    late = cluster.app.send_task("zoo.late_hold", (late_key,))
    once = cluster.app.send_task("zoo.hold", (key,))
    before = {cluster.held_in(late_key), cluster.held_in(key)}
    assert {cluster.only(one.id).device_id for one in (late, once)} == {"gpu_0"}

    host.becomes(replace(_GPU, handle_code=codes.GPU_IS_LOST), _SLICED)
    host.wait_for("draining", "the GPU is lost")
    assert cluster.held_in(late_key) not in before
    assert cluster.only(late.id).device_id == "gpu_1_mig_0"
    with pytest.raises(WorkerLostError):
        once.get(timeout=SOON_S)
    assert cluster.app.send_task("zoo.where").get(timeout=SOON_S)["device"] == "MIG-1111"
    cluster.let_go(late_key)
    assert late.get(timeout=SOON_S) == late_key
    (entry,) = cluster.ledger.journal()
    assert (entry.actor, entry.source, entry.action) == (
        f"worker:{cluster.device('gpu_0').worker}", "worker", "drain",
    )  # fmt: skip
    assert "host1/gpu_0 is draining: the GPU is lost" in host.command("status")

    host.becomes()  # it is back, and stays out until somebody says so
    cluster.app.send_task("zoo.where").get(timeout=SOON_S)
    assert cluster.device("gpu_0").state == "draining"
    host.operator().run(Uncordon("host1/gpu_0"))
    assert cluster.app.send_task("zoo.where").get(timeout=SOON_S)["device"] == "GPU-aaaa"
    cluster.settle()


def test_a_gpu_that_has_failed_gets_no_more_work_and_a_driver_that_is_back_has_it_again(
    new_cluster: Callable[..., Cluster], fake_nvml: FakeNvml
) -> None:
    host = Host(new_cluster, fake_nvml, _GPU)
    cluster = host.cluster
    cluster.start(worker_spec("gpu0", "0"))
    key = cluster.key()
    running = cluster.app.send_task("zoo.hold", (key,))
    cluster.held_in(key)

    # A program's error, and then one of the GPU. What runs goes on; what comes waits, and is told why.
    told = (("GPU-aaaa", 31, codes.WHOLE), ("GPU-aaaa", 43, codes.WHOLE), ("GPU-aaaa", 119, codes.WHOLE))
    host.becomes(xids=told)
    assert host.wait_for("draining", "Xid") == "Xid 119: GSP RPC timeout"
    waiting = cluster.app.send_task("zoo.add", (1, 2))
    reason = explain(cluster.ledger, cluster.only(waiting.id)).reason.text
    assert reason.endswith("Taken out: host1/gpu_0 is draining (Xid 119: GSP RPC timeout).")
    cluster.let_go(key)
    assert running.get(timeout=SOON_S) == key
    host.operator().run(Uncordon("host1/gpu_0"))
    assert waiting.get(timeout=SOON_S) == 3
    host.wait_for("ready")
    assert len(cluster.ledger.journal()) == 2

    # Bad memory, by the driver's counters.
    worn = replace(_GPU, ecc=2, rows=(True, True), recovery=1)
    host.becomes(worn, xids=told)
    everything = "the driver asks for: GPU reset; bad memory could not be remapped; 2 uncorrectable memory errors"
    assert host.wait_for("draining", "the driver") == everything
    host.operator().run(Uncordon("host1/gpu_0"))

    # The driver is restarted.
    host.becomes(init_code=codes.DRIVER_NOT_LOADED, generation=1)
    host.wait_for("draining", "the GPU cannot be read")
    taken = cluster.ledger.journal()[0]
    host.becomes(generation=2)
    host.wait_for("ready")
    assert cluster.app.send_task("zoo.add", (1, 2)).get(timeout=SOON_S) == 3
    assert cluster.ledger.entry(taken.number).undone_by == taken.actor
    assert cluster.ledger.entry(taken.number).undone_reason == "the GPU can be read again"

    # Once more, and an operator acts meanwhile: it stays as the operator has said.
    host.becomes(init_code=codes.DRIVER_NOT_LOADED, generation=3)
    host.wait_for("draining", "the GPU cannot be read")
    host.operator("new cables").run(Cordon("host1/gpu_0"))
    host.becomes(generation=4)
    cluster.until(lambda: "is left as it is" in cluster.logs(), "the worker to have seen it")
    assert host.wait_for("cordoned", "new") == "new cables"
    host.operator().run(Uncordon("host1/gpu_0"))
    cluster.settle()
