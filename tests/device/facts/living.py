"""What can be seen of processes that use the GPU: their memory, their end, their work, their mistakes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml

from celery_allocator.inventory import nvml, read_use
from tests.device.cuda import Cuda, CudaError
from tests.device.facts.driver import attempt
from tests.support.processes import ROOT

#: Frameworks take a moment to load.
_TORCH_HOLDS = """
import os, sys, torch
kept = torch.ones(int(sys.argv[1]) * 2**20, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", os.getpid(), flush=True)
sys.stdin.read()
"""
_MB = 2**20


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


def listing_apart() -> Any:
    """The same from inside a namespace of pids of its own, as in most containers. Only root may make one."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "tests.device.facts"]
    command += ["--section", "listing"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50, check=False)
    return run.stdout.splitlines()[-1:] or run.stderr[-500:]


def killed(command: tuple[str, ...]) -> list[dict[str, Any]]:
    """Milliseconds from SIGKILL until each thing is seen, three times."""
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    rounds = []
    for _ in range(3):
        before = pynvml.nvmlDeviceGetMemoryInfo(device).used
        with started(*command) as process:
            threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
            held = pynvml.nvmlDeviceGetMemoryInfo(device).used - before
            seen: dict[str, float] = {}
            begun = time.perf_counter()
            process.send_signal(signal.SIGKILL)
            while time.perf_counter() - begun < 10 and len(seen) < 4:
                state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
                left = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
                used = pynvml.nvmlDeviceGetMemoryInfo(device).used - before
                pids = {each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
                now = round((time.perf_counter() - begun) * 1000, 1)
                for name, so in (
                    ("first thread a zombie", state == "Z"),
                    ("no other thread", left <= 1),
                    ("memory free", used < 64 * _MB),
                    ("not listed", process.pid not in pids),
                ):
                    if so:
                        seen.setdefault(name, now)
            rounds.append({"threads": threads, "held_mb": held // _MB, **seen})
    return rounds


def killed_driver() -> Any:
    """Of a process with 8 GB by the driver alone."""
    return killed(("-m", "tests.device.holder", "8192"))


def killed_torch() -> Any:
    """Of a PyTorch process with 16 GB."""
    return killed(("-c", _TORCH_HOLDS, "16384"))


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


_STRAYS = """
from tests.device.cuda import Cuda
cuda = Cuda()
cuda.initialise()
cuda.open()
cuda.launch("stray", 16)
"""


def faults() -> dict[str, Any]:
    """What a kernel that writes where nothing is looks like: to itself, to who listens for Xids, to who comes next."""
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    types = attempt(pynvml.nvmlDeviceGetSupportedEventTypes, device)
    told: dict[str, Any] = {"supported": types, "xid bit": pynvml.nvmlEventTypeXidCriticalError}
    listener = pynvml.nvmlEventSetCreate()
    told["registered"] = attempt(
        pynvml.nvmlDeviceRegisterEvents, device, pynvml.nvmlEventTypeXidCriticalError, listener
    )
    run = subprocess.run(
        [sys.executable, "-c", _STRAYS], capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
    )
    told["to itself"] = run.stderr.strip().splitlines()[-1:]
    begun = time.perf_counter()
    try:
        event = pynvml.nvmlEventSetWait_v2(listener, 5000)
        told["heard"] = {"type": event.eventType, "data": event.eventData}
    except pynvml.NVMLError as error:
        told["heard"] = str(error)
    told["heard after_s"] = round(time.perf_counter() - begun, 3)
    with holder(16) as process:
        told["next one lives"] = process.poll() is None
    told["still readable"] = attempt(pynvml.nvmlDeviceGetMemoryInfo, device)
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
    "listing": listing, "listing apart": listing_apart, "killed (driver)": killed_driver,
    "killed (torch)": killed_torch, "working": working, "visible": visible, "full": full, "faults": faults,
}  # fmt: skip
