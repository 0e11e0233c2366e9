"""Which processes use a GPU, asked again and again by one process: the real pynvml, over a scripted library."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support import fake_nvml as nvml
from tests.support.fake_nvml import FakeDriver, FakeGpu, FakeNvml, FakeSlice, fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

# For each line of its input: what is listed of that GPU, and how often the library is open then; "fork" forks before.
_ASK = """
import ctypes, json, os, sys
from celery_allocator.errors import AllocatorError
from celery_allocator.inventory import GpuProcesses
opened = ctypes.CDLL("libnvidia-ml.so.1").fakeOpenCount
asked = GpuProcesses()
for line in sys.stdin:
    uuid, _, forks = line.strip().partition(" ")
    if forks:
        child = os.fork()
        if not child:
            os._exit(0 if opened() == 0 and asked.of(uuid) == {41: 300, 42: None} and opened() == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        now = asked.of(uuid)
    except AllocatorError as error:
        now = type(error).__name__
    print(json.dumps([now, opened()]), flush=True)
"""

_SLICE = FakeSlice("MIG-1", processes=((43, 70),))
_FIRST = FakeGpu("GPU-aaaa", processes=((41, 300), (42, None)))


def test_it_stays_open_over_questions_and_not_over_a_fork_or_an_error(fake_nvml: FakeNvml) -> None:
    def gpus(**options: Any) -> list[FakeGpu]:
        return [_FIRST, FakeGpu("GPU-bbbb", **options), FakeGpu("GPU-cccc", slices=(_SLICE,))]

    environ = fake_nvml.environ(gpus())
    process = subprocess.Popen(
        [sys.executable, "-c", _ASK], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(line: str) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    both = {"41": 300, "42": None}
    assert [ask("GPU-aaaa"), ask("GPU-bbbb"), ask("MIG-1")] == [[both, 1], [{}, 1], [{"43": 70}, 1]]
    assert ask("GPU-aaaa fork") == [both, 1]
    fake_nvml.change(environ, gpus(), driver=FakeDriver(generation=1))
    assert ask("GPU-aaaa") == [both, 1], "after a restart of the driver it is opened anew"
    fake_nvml.change(environ, gpus(now_code=nvml.NOT_SUPPORTED), driver=FakeDriver(generation=1))
    assert ask("GPU-bbbb") == [None, 1]
    fake_nvml.change(environ, gpus(handle_code=nvml.GPU_IS_LOST), driver=FakeDriver(generation=1))
    assert ask("GPU-bbbb")[0] == "GpuLostError"
    assert ask("GPU-aaaa") == [both, 1]
    fake_nvml.change(environ, gpus(), init_code=nvml.DRIVER_NOT_LOADED)
    assert ask("GPU-aaaa") == ["InventoryError", 0]
    process.communicate()
