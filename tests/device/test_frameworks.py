"""What frameworks raise when GPU memory runs out, whether their caps hold, and which process may still fork."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from celery_allocator.model import DeviceInventory
from tests.device.conftest import environment
from tests.device.facts.forking import TOUCHES, fork_after, library_of
from tests.support.availability import no_device
from tests.support.processes import ROOT

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("alone")]

_TELLS = """
import json, sys, warnings
warnings.simplefilter("ignore")
told = "nothing"
try:
    exec(sys.argv[1], {})
except Exception as error:
    told = [f"{type(error).__module__}.{type(error).__qualname__}", str(error)]
print(json.dumps(told))
"""

#: By library: a program that asks for more than any GPU has, the class it ends with, and what its text says.
_TOO_MUCH = {
    "torch": (
        "import torch; torch.empty(2**44, dtype=torch.uint8, device='cuda')",
        "torch.OutOfMemoryError",
        "CUDA out of memory. Tried to allocate",
    ),
    "cupy": ("import cupy; cupy.zeros(2**44, dtype='uint8')", "cupy.cuda.memory.OutOfMemoryError", "Out of memory"),
    "jax": (
        "import jax; jax.numpy.zeros((2**14, 2**30), dtype='uint8').block_until_ready()",
        "jax.errors.JaxRuntimeError",
        "RESOURCE_EXHAUSTED: Out of memory",
    ),
    "numba": (
        "from numba import cuda; cuda.device_array(2**44, dtype='uint8')",
        "numba.cuda.cudadrv.driver.CudaAPIError",
        "CUDA_ERROR_OUT_OF_MEMORY",
    ),
}

#: A cap of 1024 MB, as each takes it, and a program that asks for 2048 MB more than nothing.
_CAPPED = {
    "torch": (
        "import torch; total = torch.cuda.get_device_properties(0).total_memory; "
        "torch.cuda.set_per_process_memory_fraction(2**30 / total, 0); "
        "kept = torch.empty(900 * 2**20, dtype=torch.uint8, device='cuda'); "
        "torch.empty(200 * 2**20, dtype=torch.uint8, device='cuda')"
    ),
    "cupy": (
        "import cupy; cupy.get_default_memory_pool().set_limit(size=2**30); "
        "kept = cupy.zeros(900 * 2**20, dtype='uint8'); cupy.zeros(200 * 2**20, dtype='uint8')"
    ),
}


def _ends_with(gpu: DeviceInventory, library: str, program: str) -> Any:
    if find_spec(library) is None:
        no_device(f"{library} is not installed")
    env = environment(gpu) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    run = subprocess.run(
        [sys.executable, "-c", _TELLS, program],
        capture_output=True,
        text=True,
        timeout=100,
        env=env,
        cwd=ROOT,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("library", _TOO_MUCH)
def test_more_than_there_is_ends_with_the_class_that_is_known(gpu: DeviceInventory, library: str) -> None:
    program, name, text = _TOO_MUCH[library]
    found, said = _ends_with(gpu, library, program)
    assert (found, text in said) == (name, True), (found, said)


@pytest.mark.parametrize("library", _CAPPED)
def test_more_than_the_cap_ends_like_more_than_there_is(gpu: DeviceInventory, library: str) -> None:
    found, said = _ends_with(gpu, library, _CAPPED[library])
    assert (found, _TOO_MUCH[library][2].split(".")[0] in said) == (_TOO_MUCH[library][1], True), (found, said)


@pytest.mark.parametrize("touch", TOUCHES)
def test_only_who_has_initialised_cuda_may_not_fork(gpu: DeviceInventory, touch: str) -> None:
    """The driver tells: in a process that has not, there is no current context to ask for. NVML does no harm."""
    if library_of(touch) != "driver" and find_spec(library_of(touch)) is None:
        no_device(f"{library_of(touch)} is not installed")
    told = fork_after(touch, environment(gpu))
    assert (told["child"] == "works") == (told["cuCtxGetCurrent"] != 0), told
