"""What is left of processes that use the GPU and are killed, and of those whose kernels go astray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pynvml

from tests.device.facts.driver import attempt
from tests.device.facts.living import holder, started
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


_LONG_KERNEL = """
import os, threading
from tests.device.cuda import Cuda
cuda = Cuda()
cuda.initialise()
cuda.open()
cuda.allocate(4096)
cuda.launch("spin", 1000)
threading.Timer(0.3, lambda: print("held", os.getpid(), flush=True)).start()
cuda.launch("spin", 6_000_000_000)
"""


def killed_working() -> Any:
    """Of a process with 4 GB, in the midst of a kernel that would run for 6 s."""
    return killed(("-c", _LONG_KERNEL))


_AFTER_A_MISTAKE = """
import json
from tests.device.cuda import Cuda, CudaError
cuda = Cuda()
cuda.initialise()
cuda.open()
told = {}
def attempt(name, call, *args):
    try:
        call(*args)
        told[name] = "works"
    except CudaError as error:
        told[name] = str(error)
attempt("the mistake", cuda.launch, "stray", 16)
attempt("memory afterwards", cuda.allocate, 1)
attempt("reset", cuda.call, "cuDevicePrimaryCtxReset_v2", 0)
cuda.forget()
attempt("opened again", cuda.open)
attempt("memory then", cuda.allocate, 1)
print(json.dumps(told))
"""


def after_a_mistake() -> Any:
    """Whether a process whose kernel wrote where nothing is can still use the device."""
    run = subprocess.run(
        [sys.executable, "-c", _AFTER_A_MISTAKE], capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
    )
    return json.loads(run.stdout) if run.stdout else run.stderr[-500:]


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


SECTIONS = {
    "killed (driver)": killed_driver, "killed (torch)": killed_torch, "killed (working)": killed_working,
    "faults": faults, "after a mistake": after_a_mistake,
}  # fmt: skip
