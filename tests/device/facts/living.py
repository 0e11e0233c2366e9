"""What can be seen of processes that use the GPU: their memory, their work, what they are shown."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml

from celery_allocator.inventory import nvml, read_use
from tests.device.cuda import Cuda, CudaError
from tests.device.facts.driver import attempt
from tests.support.processes import ROOT


@contextlib.contextmanager
def started(*command: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Python with these arguments, once it has said that it holds what it should."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and not line.startswith("held"):
            pass
        yield process
    finally:
        process.kill()
        process.communicate()


def holder(mb: int, *options: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A process that holds so many MB by the driver alone."""
    return started("-m", "tests.device.holder", str(mb), *options)


def listing() -> dict[str, Any]:
    """What the driver lists of a process of ours, and under which pid."""
    uuid = nvml.all_devices()[0].uuid
    idle = read_use(uuid)
    with holder(1000) as process:
        use = read_use(uuid)
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return {
            "idle": vars(idle),
            "pid": process.pid,
            "pids by namespace": [line for line in status if line.startswith(("NSpid", "Threads"))],
            "with 1000 MB held": vars(use),
            "beyond them, of the whole device": (use.used_mb or 0) - (idle.used_mb or 0) - 1000,
            "beyond them, of the process": ((use.processes or {}).get(process.pid) or 0) - 1000,
        }


def several() -> list[dict[str, Any]]:
    """What is in use of the device beside what its processes hold, with none to three of them."""
    uuid, told = nvml.all_devices()[0].uuid, []
    with contextlib.ExitStack() as stack:
        for number in range(4):
            use = read_use(uuid)
            held = sum(mb or 0 for mb in (use.processes or {}).values())
            told.append({"processes": number, "used_mb": use.used_mb, "theirs_mb": held})
            stack.enter_context(holder(100))
    return told


_LOOKS = """
import json, os, psutil
from celery_allocator.inventory import nvml, read_use
from celery_allocator.plugin.holdings import Holdings
from celery_allocator.plugin.meter import Meter
device = nvml.all_devices()[0]
use = Meter(device, Holdings().all, 1.0).measure()
print(json.dumps({"pids here": psutil.pids(), "processes": read_use(device.uuid).processes, "meter": use.to_wire()}))
"""


def across() -> dict[str, Any]:
    """What one sees from inside a namespace of pids of a process outside, and the other way round."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    with holder(1000) as process:
        run = subprocess.run(
            [*apart, sys.executable, "-c", _LOOKS], capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
        )
        told: dict[str, Any] = {"pid outside": process.pid, "seen inside": run.stdout.strip() or run.stderr[-500:]}
    inside = subprocess.Popen(
        [*apart, "--kill-child", sys.executable, "-m", "tests.device.holder", "1000"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert inside.stdout is not None
    told["pid inside"] = inside.stdout.readline().split()
    told["pid outside of it"] = [child.pid for child in psutil.Process(inside.pid).children()]
    told["seen outside"] = read_use(nvml.all_devices()[0].uuid).processes
    inside.communicate()
    return told


def listing_apart() -> Any:
    """The same from inside a namespace of pids of its own, as in most containers. Only root may make one."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "tests.device.facts"]
    command += ["--section", "listing"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50, check=False)
    return run.stdout.splitlines()[-1:] or run.stderr[-500:]


def working() -> dict[str, Any]:
    """Seconds until utilisation shows that kernels run, and that none runs any more."""
    uuid = nvml.all_devices()[0].uuid
    told: dict[str, Any] = {"idle": vars(read_use(uuid))}
    with holder(16, "busy") as process:
        for name, so in (("shows work", lambda share: share > 0.5), ("shows none", lambda share: share == 0)):
            begun = time.perf_counter()
            seen = []
            while time.perf_counter() - begun < 10:
                use = read_use(uuid)
                seen.append(use.utilization)
                if use.utilization is not None and so(use.utilization):
                    break
            told[name] = {"after_s": round(time.perf_counter() - begun, 3), "last": seen[-1], "looks": len(seen)}
            if name == "shows work":
                told["at work"] = vars(use)
                pynvml.nvmlInit()
                device = pynvml.nvmlDeviceGetHandleByIndex(0)
                told["per process"] = attempt(pynvml.nvmlDeviceGetProcessUtilization, device, 0)
                pynvml.nvmlShutdown()
                process.communicate()
    return told


_SHOWS = """
import sys
from tests.device.cuda import Cuda
cuda = Cuda()
cuda.initialise()
print(cuda.uuids())
"""


def visible() -> dict[str, Any]:
    """What the driver shows for each value of CUDA_VISIBLE_DEVICES."""
    uuid = nvml.all_devices()[0].uuid
    told = {}
    values = {
        "UUID": uuid,
        "its first digits": uuid[:12],
        "capitals": uuid.upper(),
        "twice": f"{uuid},{uuid}",
        "unknown": "GPU-00000000-0000-0000-0000-000000000000",
        "unknown, then it": f"GPU-00000000-0000-0000-0000-000000000000,{uuid}",
        "it, then unknown": f"{uuid},GPU-00000000-0000-0000-0000-000000000000",
        "empty": "",
        "-1": "-1",
    }
    for name, value in values.items():
        run = subprocess.run(
            [sys.executable, "-c", _SHOWS],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": value},
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        told[name] = (run.stdout or run.stderr).strip().splitlines()[-1].replace(uuid, "<UUID>")
    return told


def full() -> dict[str, Any]:
    """What the driver says when there is no room for the memory, and none for the context."""
    cuda = Cuda()
    cuda.initialise()
    cuda.open()
    try:
        cuda.allocate(2**24)
    except CudaError as error:
        return {"memory": str(error)}
    return {"memory": "given"}


SECTIONS = {
    "listing": listing, "several": several, "listing apart": listing_apart, "across": across, "working": working,
    "visible": visible, "full": full,
}  # fmt: skip
