"""GPUs as the driver of this machine tells of them, compared with NVIDIA's own reader."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import discover, nvml, read_use
from celery_allocator.inventory.nvml import topology
from celery_allocator.model import DeviceInventory
from celery_allocator.settings import Settings
from tests.device import smi
from tests.device.conftest import Hold, environment, pids_are_told
from tests.support.processes import ROOT

pytestmark = pytest.mark.device


def test_every_gpu_is_the_one_that_nvidia_smi_shows(gpu: DeviceInventory) -> None:
    fields = ("index", "uuid", "name", "memory.total", "memory.reserved", "compute_cap")
    shown = {row["uuid"]: row for row in smi.query("gpu", *fields, "mig.mode.current")}
    found = nvml.all_devices()
    # Where MIG is on, slices stand for the GPU.
    assert {d.parent_uuid or d.uuid for d in found} == set(shown)
    for d in (one for one in found if one.parent_uuid is None):
        row = shown[d.uuid]
        assert row["mig.mode.current"] in (None, "Disabled")
        assert (str(d.index), d.model, d.compute_capability) == (row["index"], row["name"], row["compute_cap"])
        assert d.device_id == f"gpu_{d.index}"
        # Each is cut to whole MB.
        assert abs(d.memory_mb + (d.reserved_mb or 0) - int(row["memory.total"] or 0)) <= 1
        assert d.reserved_mb is None or abs(d.reserved_mb - int(row["memory.reserved"] or 0)) <= 1
    assert not any(d.simulated for d in found)


def test_what_the_driver_keeps_is_not_offered(gpu: DeviceInventory, alone: None) -> None:
    """What CUDA says there is in all is what the inventory offers."""
    told = subprocess.check_output([sys.executable, "-c", _TOTAL], text=True, cwd=ROOT, env=environment(gpu))
    assert abs(int(told) - gpu.memory_mb) <= 1


_TOTAL = """
import ctypes
from tests.device.cuda import Cuda
cuda = Cuda()
cuda.initialise()
total = ctypes.c_size_t()
cuda.call("cuDeviceTotalMem_v2", ctypes.byref(total), 0)
print(total.value // 2**20)
"""


def test_numa_node_and_links_are_those_of_the_kernel_and_of_all_pairs(gpu: DeviceInventory) -> None:
    bus = str(smi.gpu(gpu.uuid, "pci.bus_id")["pci.bus_id"])
    told = Path("/sys/bus/pci/devices") / topology.slot(bus) / "numa_node"
    kernels = int(told.read_text()) if told.exists() else -1
    assert gpu.numa_node == kernels if kernels >= 0 else gpu.numa_node in (None, 0), (gpu.numa_node, kernels)
    here = discover(Settings(devices="auto"))
    whole = sorted(d.device_id for d in here.devices if d.parent_uuid is None)
    assert set(here.links) == set(itertools.combinations(whole, 2))


def test_cores_near_it_are_those_that_the_kernel_says_are_near_its_slot(gpu: DeviceInventory) -> None:
    bus = str(smi.gpu(gpu.uuid, "pci.bus_id")["pci.bus_id"]).lower()
    near = Path("/sys/bus/pci/devices") / f"{int(bus.split(':')[0], 16):04x}:{bus.split(':', 1)[1]}" / "local_cpulist"
    if not near.exists():
        pytest.fail(f"the kernel does not show {near}")
    told = discover(Settings(devices=gpu.uuid)).devices[0].cpu_affinity
    cores = {core for part in near.read_text().strip().split(",") for core in _range(part)}
    # The driver may not know; but then it must not name cores.
    assert told == () or set(told) == cores & os.sched_getaffinity(0)


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def test_a_gpu_is_found_by_every_name_it_has(gpu: DeviceInventory) -> None:
    for name in (str(gpu.index), gpu.device_id, gpu.uuid):
        assert discover(Settings(devices=name)).devices[0].uuid == gpu.uuid


def test_a_gpu_that_is_not_there(gpu: DeviceInventory) -> None:
    unheard_of = "GPU-00000000-0000-0000-0000-000000000000"
    with pytest.raises(InventoryError, match=gpu.uuid):  # those there are, are named
        discover(Settings(devices=unheard_of))
    with pytest.raises(InventoryError, match="NVML cannot read this host's GPUs"):
        read_use(unheard_of)


def test_what_is_in_use_is_what_nvidia_smi_shows(gpu: DeviceInventory, hold: Hold) -> None:
    pid = hold(256)
    fields = ("memory.used", "temperature.gpu", "power.draw", "utilization.gpu")
    shown, use = smi.gpu(gpu.uuid, *fields), read_use(gpu.uuid)
    assert use.used_mb is not None
    assert abs(use.used_mb - int(shown["memory.used"] or 0)) <= 1, (use, shown)
    for field, ours in zip(fields[1:], (use.temperature_c, use.power_w, use.utilization), strict=True):
        assert (ours is None) == (shown[field] is None), (field, ours, shown[field])
    if use.temperature_c is not None:
        assert abs(use.temperature_c - int(shown["temperature.gpu"] or 0)) <= 10
    # What a process holds, as both see it.
    rows = smi.query("compute-apps", "pid", "used_gpu_memory")
    by_pid = {int(row["pid"] or 0): row["used_gpu_memory"] for row in rows}
    assert {p: None if mb is None else str(mb) for p, mb in (use.processes or {}).items()} == by_pid
    assert not pids_are_told(gpu, pid) or (use.processes or {})[pid] is None or int(by_pid[pid] or 0) >= 256


_FORK = """
import os, sys
from celery_allocator.inventory import nvml, read_use
uuid = sys.argv[1]
mine = [(device.uuid, read_use(device.uuid).used_mb is not None) for device in nvml.all_devices()]
child = os.fork()
again = [(device.uuid, read_use(device.uuid).used_mb is not None) for device in nvml.all_devices()]
assert (uuid, True) in mine and again == mine, (mine, again)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


def test_a_process_that_has_read_it_can_fork_and_read_again(gpu: DeviceInventory) -> None:
    """As a worker does: the parent measures, and its children may, too."""
    subprocess.run([sys.executable, "-c", _FORK, gpu.uuid], check=True, timeout=60, env=environment(gpu), cwd=ROOT)
