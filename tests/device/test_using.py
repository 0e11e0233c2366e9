"""What a run used of a real GPU, as the process that ran it tells: with PyTorch, and with the driver alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from celery_allocator.model import DeviceInventory
from tests.device.conftest import environment
from tests.support.availability import no_device
from tests.support.processes import ROOT

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("alone")]

#: Three runs in one process: a large one, a small one of another name in what that left, and the large one again.
_RUNS = """
import json, sys, torch
from celery_allocator.model import Allocation, Kind, Requirements, State, Strategy
from celery_allocator.plugin import using

using._ASK_DRIVER_S = 0.0
uuid, told = sys.argv[1], []
for name, mb in (("large", 4000), ("small", 500), ("large", 4000)):
    need = Requirements(gpu_memory_mb=8000)
    place = {"node": "n1", "device_id": "gpu_0", "device_uuid": uuid}
    run = Allocation("a1", "t1", name, State.RUNNING, Kind.TASK, need, Strategy.BEST_FIT, 0.0, **place)
    using.begin("t1", run, None)
    kept = torch.empty(mb * 2**20, dtype=torch.uint8, device="cuda")
    (torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda")).sum().item()
    del kept
    told.append(using.end("t1", None).gpu_memory_mb)
print(json.dumps(told))
"""
#: What context, cuBLAS and the allocator's rounding may take beside the memory that was asked for.
_BESIDE_MB = 1200


def test_pytorch_tells_of_each_run_apart(gpu: DeviceInventory) -> None:
    """Also of one that found room in what another had left, which the driver cannot tell."""
    if find_spec("torch") is None:
        no_device("torch is not installed")
    run = subprocess.run(
        [sys.executable, "-c", _RUNS, gpu.uuid],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(gpu),
        cwd=ROOT,
        check=True,
    )
    for told, mb in zip(json.loads(run.stdout.splitlines()[-1]), (4000, 500, 4000), strict=True):
        assert mb < told <= mb + _BESIDE_MB
