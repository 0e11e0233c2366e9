"""Which caps hold, and what is said where there is no room at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pynvml

from tests.device.facts.living import holder
from tests.support.processes import ROOT

_CAPS: dict[str, tuple[dict[str, str], str]] = {
    "torch, no cap": ({}, "import torch; kept = torch.ones(1, device='cuda')"),
    "torch, fraction set, nothing else": (
        {}, "import torch; torch.cuda.set_per_process_memory_fraction(.01, 0); more = lambda: None",
    ),
    "torch, PYTORCH_ALLOC_CONF": (
        {"PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.01"},
        "import torch; more = lambda: torch.empty(4 * 2**30, dtype=torch.uint8, device='cuda')",
    ),
    "torch, PYTORCH_CUDA_ALLOC_CONF": (
        {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.01"},
        "import torch; more = lambda: torch.empty(4 * 2**30, dtype=torch.uint8, device='cuda')",
    ),
    "torch, PYTORCH_ALLOC_CONF after import": (
        {},
        (
            "import os, torch; os.environ['PYTORCH_ALLOC_CONF'] = 'per_process_memory_fraction:0.01'; "
            "more = lambda: torch.empty(4 * 2**30, dtype=torch.uint8, device='cuda')"
        ),
    ),
    "cupy, CUPY_GPU_MEMORY_LIMIT": (
        {"CUPY_GPU_MEMORY_LIMIT": str(2**30)}, "import cupy; more = lambda: cupy.zeros(2 * 2**30, dtype=cupy.uint8)",
    ),
    "cupy, CUPY_GPU_MEMORY_LIMIT after import": (
        {},
        (
            "import os, cupy; os.environ['CUPY_GPU_MEMORY_LIMIT'] = str(2**30); "
            "more = lambda: cupy.zeros(2 * 2**30, dtype=cupy.uint8)"
        ),
    ),
    "jax, XLA_PYTHON_CLIENT_MEM_FRACTION after import": (
        {},
        (
            "import os, jax; os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'] = '.02'; "
            "more = lambda: jax.numpy.zeros(1).block_until_ready()"
        ),
    ),
    "torch, invisible after import": (
        {}, "import os, torch; os.environ['CUDA_VISIBLE_DEVICES'] = ''; more = lambda: torch.ones(1, device='cuda')",
    ),
    "torch, invisible after device_count": (
        {},
        (
            "import os, torch; torch.cuda.device_count(); os.environ['CUDA_VISIBLE_DEVICES'] = ''; "
            "more = lambda: torch.ones(1, device='cuda')"
        ),
    ),
    "torch, invisible after is_available": (
        {},
        (
            "import os, torch; torch.cuda.is_available(); os.environ['CUDA_VISIBLE_DEVICES'] = ''; "
            "more = lambda: torch.ones(1, device='cuda')"
        ),
    ),
    "jax, invisible after import": (
        {}, "import os, jax; os.environ['CUDA_VISIBLE_DEVICES'] = ''; more = lambda: print(jax.devices())",
    ),
}  # fmt: skip

_TRIES = """
import json, sys, warnings
warnings.simplefilter("ignore")
from tests.device.facts.frameworks import mine_mb, raised
more = lambda: None
exec(sys.argv[1])
print("told " + json.dumps([raised(more), mine_mb()]))
"""


def caps() -> dict[str, Any]:
    """Which caps hold that are set before the framework has touched the device, and in which moment."""
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(_CAPS, threads.map(lambda cap: _told(_TRIES, cap[1], cap[0]), _CAPS.values()), strict=True))


def _told(program: str, argument: str, env: Mapping[str, str] | None = None) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", program, argument],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=40,
        check=False,
        env={**os.environ, **(env or {})},
    )
    found = [line.removeprefix("told ") for line in run.stdout.splitlines() if line.startswith("told ")]
    return json.loads(found[0]) if found else run.stderr[:800]


_FULL = {
    "torch: cuBLAS": (
        900,
        "import torch; kept = torch.ones(8, 8, device='cuda'); kept @ kept; torch.cuda.synchronize()",
    ),
    "torch: cuBLAS, less": (
        660,
        "import torch; kept = torch.ones(8, 8, device='cuda'); kept @ kept; torch.cuda.synchronize()",
    ),
    "torch: context": (100, "import torch; torch.ones(1, device='cuda')"),
    "cupy: context": (100, "import cupy; cupy.zeros(1)"),
    "jax: context": (100, "import jax; jax.numpy.zeros(1).block_until_ready()"),
    "driver: context": (100, "from tests.device.cuda import Cuda; c = Cuda(); c.initialise(); c.open()"),
}

_SAYS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from tests.device.facts.frameworks import raised
def ask():
    exec(sys.argv[1], {})
print("told " + json.dumps(raised(ask)))
"""


def full() -> dict[str, Any]:
    """What each says where another process leaves so many MB: too little for a context, or for a library's own."""
    told = {}
    for name, (left, program) in _FULL.items():
        free = _free_mb()
        with holder(1) as probe:
            context = free - _free_mb()
            probe.communicate()
        with holder(_free_mb() - context - left) as process:
            before = _free_mb()
            said = _told(_SAYS, program)
            told[name] = {"free_mb": before, "holder lives": process.poll() is None, "raised": said}
    return told


def _free_mb() -> int:
    pynvml.nvmlInit()
    free = int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free) // 2**20
    pynvml.nvmlShutdown()
    return free


SECTIONS = {"caps": caps, "device full": full}
