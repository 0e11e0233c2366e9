"""The health of GPUs, watched through the real pynvml, in a subprocess, over a scripted library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support import fake_nvml as nvml
from tests.support.fake_nvml import FakeDriver, FakeGpu, FakeNvml, FakeSlice, fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

# Looks at a GPU for each line of its input; "fork" forks before it does.
_WATCH = """
import ctypes, json, os, sys
from dataclasses import asdict
from celery_allocator.errors import AllocatorError
from celery_allocator.inventory import GpuWatch, read_health
def opened():
    return ctypes.CDLL("libnvidia-ml.so.1").fakeOpenCount()
watch = GpuWatch(sys.argv[1])
for line in sys.stdin:
    if line.strip() == "close":
        watch.close()
        print(json.dumps(opened()), flush=True)
        continue
    if line.strip() == "fork":
        child = os.fork()
        if not child:
            now = opened(), read_health(sys.argv[1]).ecc_uncorrected is not None
            os._exit(0 if now == (0, True) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        now = watch.look()
    except AllocatorError as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
    else:
        print(json.dumps(asdict(now)), flush=True)
"""

UUID, OTHER = "GPU-aaaa", "GPU-bbbb"
_WELL = FakeGpu(UUID, ecc=0, rows=(False, False), recovery=0)
_IS_WELL = {"ecc_uncorrected": 0, "rows_failed": False, "rows_pending": False, "recovery": "", "xids": []}


class Watcher:
    """A process that watches one device of a scripted driver."""

    def __init__(self, library: FakeNvml, uuid: str, *gpus: FakeGpu) -> None:
        self._library, self._gpus = library, gpus
        self._environ = library.environ(gpus)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WATCH, uuid],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def look(self, how: str = "") -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def becomes(self, *gpus: FakeGpu, **driver: Any) -> None:
        self._library.change(self._environ, gpus or self._gpus, driver=FakeDriver(**driver))

    def end(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def watcher(fake_nvml: FakeNvml) -> Iterator[Watcher]:
    made = Watcher(fake_nvml, UUID, _WELL, FakeGpu(OTHER))
    yield made
    made.end()


def test_a_gpu_that_is_well(watcher: Watcher) -> None:
    assert watcher.look() == _IS_WELL
    assert watcher.look("close") == 0
    assert watcher.look() == _IS_WELL


def test_what_the_driver_counts_and_asks_for(watcher: Watcher) -> None:
    watcher.look()
    watcher.becomes(replace(_WELL, ecc=3, rows=(True, True), recovery=4), FakeGpu(OTHER))
    assert watcher.look() == {
        "ecc_uncorrected": 3, "rows_failed": True, "rows_pending": True, "recovery": "drain and reset", "xids": [],
    }  # fmt: skip


def test_what_is_not_supported_is_none(fake_nvml: FakeNvml) -> None:
    watcher = Watcher(fake_nvml, OTHER, FakeGpu(OTHER))
    assert watcher.look() == {**dict.fromkeys(_IS_WELL), "xids": []}
    watcher.end()


def test_xids_are_heard_once_each_and_only_those_of_this_gpu(watcher: Watcher) -> None:
    watcher.becomes(xids=((UUID, 13, nvml.WHOLE),))  # before anybody listened
    assert watcher.look()["xids"] == []
    told = [(UUID, 13, nvml.WHOLE), (OTHER, 79, nvml.WHOLE), (UUID, 31, nvml.WHOLE), (UUID, 43, nvml.WHOLE)]
    watcher.becomes(xids=tuple(told))
    assert watcher.look()["xids"] == [31, 43]
    assert watcher.look()["xids"] == []
    watcher.becomes(xids=(*told, (UUID, 31, nvml.WHOLE)))
    assert watcher.look()["xids"] == [31]


def test_xids_of_another_slice_of_the_same_gpu_are_not_ours(fake_nvml: FakeNvml) -> None:
    slices = (FakeSlice("MIG-1", number=0, instance=7), FakeSlice("MIG-2", number=1, instance=8))
    watcher = Watcher(fake_nvml, "MIG-1", replace(_WELL, slices=slices))
    assert watcher.look() == _IS_WELL  # its GPU's
    watcher.becomes(xids=((UUID, 31, 8), (UUID, 45, 7), (UUID, 48, nvml.WHOLE)))
    assert watcher.look()["xids"] == [45, 48]
    watcher.end()


@pytest.mark.parametrize("code", [nvml.NO_PERMISSION, nvml.UNKNOWN])
def test_a_driver_that_cannot_be_listened_to_is_no_reason_to_take_a_gpu_out(watcher: Watcher, code: int) -> None:
    watcher.becomes(listen_code=code)
    assert watcher.look() == {**_IS_WELL, "xids": None}
    assert watcher.look() == {**_IS_WELL, "xids": None}
    watcher.becomes()
    assert watcher.look("close") == 0
    assert watcher.look() == _IS_WELL
    watcher.becomes(listen_code=code)  # from now on
    assert watcher.look() == {**_IS_WELL, "xids": None}


def test_nothing_that_is_open_crosses_a_fork(watcher: Watcher) -> None:
    watcher.look()
    assert watcher.look("fork") == _IS_WELL
    watcher.becomes(xids=((UUID, 31, nvml.WHOLE),))
    assert watcher.look()["xids"] == [31]  # it listens again


def test_a_gpu_that_is_lost_is_told_apart_from_a_driver_that_does_not_answer(watcher: Watcher) -> None:
    assert watcher.look() == _IS_WELL
    watcher.becomes(replace(_WELL, handle_code=nvml.GPU_IS_LOST), FakeGpu(OTHER))
    assert watcher.look()[0] == "GpuLostError"
    for code in (nvml.DRIVER_NOT_LOADED, nvml.UNKNOWN):
        watcher.becomes(init_code=code)
        assert watcher.look()[0] == "InventoryError"


def test_a_gpu_that_is_well_beside_one_that_is_lost(watcher: Watcher) -> None:
    """A driver that has lost any GPU gives none by its UUID."""
    lost = FakeGpu(OTHER, handle_code=nvml.GPU_IS_LOST)
    watcher.becomes(_WELL, lost)
    assert watcher.look() == _IS_WELL
    watcher.becomes(lost, _WELL, xids=((UUID, 31, nvml.WHOLE),))
    assert watcher.look("fork")["xids"] == []  # what was reported before it listened again
    watcher.becomes(lost)
    assert watcher.look()[0] == "GpuLostError"


def test_a_driver_that_was_restarted_is_read_again(watcher: Watcher) -> None:
    """What was opened before is of no use: it is closed, and opened anew."""
    assert watcher.look() == _IS_WELL
    watcher.becomes(init_code=nvml.DRIVER_NOT_LOADED, generation=1)
    assert "Driver Not Loaded" in watcher.look()[1]
    assert "Driver Not Loaded" in watcher.look()[1]
    watcher.becomes(generation=2)
    assert watcher.look() == _IS_WELL
    watcher.becomes(generation=3)  # so fast that nobody saw it away
    assert watcher.look() == _IS_WELL
    watcher.becomes(generation=3, xids=((UUID, 119, nvml.WHOLE),))
    assert watcher.look()["xids"] == [119]
