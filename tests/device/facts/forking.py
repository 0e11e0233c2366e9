"""What is left of CUDA in a child that is forked after its parent has touched it, and how the parent can be told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from tests.support.processes import ROOT

#: What a parent may have done before it forks.
TOUCHES = {
    "driver: loaded": "from tests.device.cuda import Cuda; cuda = Cuda()",
    "driver: cuInit": "from tests.device.cuda import Cuda; cuda = Cuda(); cuda.initialise()",
    "driver: context": "from tests.device.cuda import Cuda; cuda = Cuda(); cuda.initialise(); cuda.open()",
    "nvml: opened": "import pynvml; pynvml.nvmlInit(); pynvml.nvmlDeviceGetHandleByIndex(0)",
    "torch: imported": "import torch",
    "torch: is_available": "import torch; torch.cuda.is_available()",
    "torch: is_available by NVML": (
        "import os; os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'; import torch; torch.cuda.is_available()"
    ),
    "torch: device_count": "import torch; torch.cuda.device_count()",
    "torch: properties": "import torch; torch.cuda.get_device_properties(0)",
    "torch: tensor": "import torch; kept = torch.zeros(1, device='cuda')",
    "cupy: imported": "import cupy",
    "cupy: array": "import cupy; kept = cupy.zeros(1)",
    "jax: imported": "import jax",
    "jax: devices": "import jax; jax.devices()",
}

_USES = {
    "torch": "import torch; torch.zeros(1, device='cuda').item()",
    "cupy": "import cupy; cupy.zeros(1).item()",
    "jax": "import jax; jax.numpy.zeros(1).block_until_ready()",
    "driver": ("from tests.device.cuda import Cuda; cuda = Cuda(); cuda.initialise(); cuda.open(); cuda.allocate(1)"),
}

_PROGRAM = """
import ctypes, json, os, sys, warnings
warnings.simplefilter("ignore")
touch, use = sys.argv[1:]
exec(touch)
told = {"libcuda mapped": "libcuda.so" in open("/proc/self/maps").read()}
links = []
for number in os.listdir("/proc/self/fd"):
    try:
        links.append(os.readlink(f"/proc/self/fd/{number}"))
    except OSError:
        pass
told["device files open"] = sorted({link for link in links if link.startswith("/dev/nvidia")})
try:
    driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
except OSError:
    told["cuCtxGetCurrent"] = "not loaded"
else:
    context = ctypes.c_void_p()
    told["cuCtxGetCurrent"] = driver.cuCtxGetCurrent(ctypes.byref(context))
    told["context"] = bool(context.value)
if "torch" in sys.modules:
    told["torch.cuda.is_initialized"] = sys.modules["torch"].cuda.is_initialized()
    told["torch bad fork flag"] = getattr(sys.modules["torch"].cuda, "_is_in_bad_fork", lambda: None)()
print(json.dumps(told), flush=True)
child = os.fork()
if not child:
    try:
        exec(use)
        print(json.dumps("works"), flush=True)
    except BaseException as error:
        print(json.dumps(f"{type(error).__module__}.{type(error).__qualname__}: {error}"[:600]), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def fork() -> dict[str, Any]:
    """For each touch: what the parent looks like, and what its child can still do."""
    there = [name for name in TOUCHES if library_of(name) == "driver" or find_spec(library_of(name))]
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(there, threads.map(fork_after, there), strict=True))


def library_of(touch: str) -> str:
    """The library whose touch it is: ``driver`` for NVML, too."""
    library = touch.partition(":")[0]
    return library if library in _USES else "driver"


def fork_after(touch: str, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What a process looks like after that touch, and under ``child`` what its child says of using the GPU."""
    command = [sys.executable, "-c", _PROGRAM, TOUCHES[touch], _USES[library_of(touch)]]
    env = {**env, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=40, cwd=ROOT, env=env, check=False)
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode().splitlines()
        return {**(json.loads(output[0]) if output else {}), "child": "no answer within 40 s"}
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith(("{", '"'))]
    if not lines:
        return {"ended with": run.returncode, "said": run.stderr[:600]}
    # A library may end the child without an exception.
    return {**lines[0], "child": lines[1] if len(lines) > 1 else f"ended: {run.stderr[:600]}"}


SECTIONS = {"fork": fork}
