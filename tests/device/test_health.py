"""The health of a real GPU, as the watch of its worker sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from celery_allocator.inventory import FATAL, GpuWatch, read_health
from celery_allocator.model import DeviceInventory
from tests.device import smi
from tests.device.conftest import environment
from tests.support.processes import ROOT
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("alone")]

_STRAYS = """
from tests.device.cuda import Cuda
cuda = Cuda()
cuda.initialise()
cuda.open()
cuda.launch("stray", 16)
"""


@pytest.fixture
def watch(gpu: DeviceInventory) -> Iterator[GpuWatch]:
    made = GpuWatch(gpu.uuid)
    made.look()
    yield made
    made.close()


def test_health_is_what_nvidia_smi_shows(gpu: DeviceInventory, watch: GpuWatch) -> None:
    fields = ("ecc.errors.uncorrected.volatile.total", "remapped_rows.failure", "remapped_rows.pending")
    shown, now = smi.gpu(gpu.uuid, *fields), watch.look()
    ours = (now.ecc_uncorrected, now.rows_failed, now.rows_pending)
    assert [None if value is None else str(int(value)) for value in ours] == [
        {"No": "0", "Yes": "1"}.get(shown[field] or "", shown[field]) for field in fields
    ]
    again = read_health(gpu.uuid)
    assert (again.ecc_uncorrected, again.rows_failed, again.rows_pending) == ours
    assert again.recovery == now.recovery in ("", None), "this GPU is to be reset before it can be tested"
    assert now.xids is not None, "the driver tells of no Xids here"


def test_a_kernel_that_goes_astray_is_heard_and_no_reason_to_take_the_gpu_out(
    gpu: DeviceInventory, watch: GpuWatch
) -> None:
    heard: list[int] = []

    def listens() -> bool:
        heard.extend(watch.look().xids or ())
        return 31 in heard

    run = subprocess.run(
        [sys.executable, "-c", _STRAYS], env=environment(gpu), cwd=ROOT, timeout=60, check=False, capture_output=True
    )
    assert run.returncode != 0
    wait_until(listens, 10, lambda: f"Xid 31; heard were {heard}")
    assert not set(heard) & set(FATAL)


def test_a_process_that_listens_can_fork_and_listens_on(gpu: DeviceInventory, watch: GpuWatch) -> None:
    child = os.fork()
    if not child:
        seen = False
        try:
            mine = GpuWatch(gpu.uuid)
            seen = mine.look().xids is not None and read_health(gpu.uuid).recovery == ""
            mine.close()
        finally:
            os._exit(0 if seen else 1)
    assert watch.look().xids == ()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert watch.look().xids == ()
