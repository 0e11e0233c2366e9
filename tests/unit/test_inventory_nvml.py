"""GPUs by NVML: through the real pynvml, in a subprocess, over a scripted library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_nvml as nvml
from tests.support.fake_nvml import FakeDriver, FakeGpu, FakeNvml, FakeSlice, fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

# Prints what was found, or the error, and how often the library is still open.
_DISCOVER = """
import ctypes, json, logging, sys
from celery_allocator.errors import AllocatorError
from celery_allocator.inventory import discover
from celery_allocator.settings import Settings
logging.basicConfig(level="WARNING")
reply = {}
try:
    found = discover(Settings(devices=sys.argv[1], cpu_cores=int(sys.argv[2]) or None, node="n1"))
    reply["devices"] = [vars(device) for device in found.devices]
    reply["links"] = {" ".join(pair): link.name for pair, link in found.links.items()}
except AllocatorError as error:
    reply["error"] = [type(error).__name__, str(error)]
try:
    reply["open"] = ctypes.CDLL("libnvidia-ml.so.1").fakeOpenCount()
except OSError:
    reply["open"] = None
print(json.dumps(reply))
"""

_FIRST = FakeGpu("GPU-aaaa", "NVIDIA Test A", 81559, cores=(0, 1, 70), reserved_mb=480, capability=(9, 0), numa=1)
_SECOND = FakeGpu("GPU-bbbb", "NVIDIA Test B", 24564, affinity_code=nvml.NOT_SUPPORTED)


def _discover(environ: Mapping[str, str], devices: str = "auto", cores: int = 0) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", _DISCOVER, devices, str(cores)],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {**json.loads(run.stdout), "log": run.stderr}


def test_two_gpus_are_read_as_they_are(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([_FIRST, _SECOND]), cores=128)

    assert reply["devices"] == [
        {
            "device_id": "gpu_0",
            "index": 0,
            "uuid": "GPU-aaaa",
            "model": "NVIDIA Test A",
            "memory_mb": 81079,  # what a process can get of 81559
            "cpu_affinity": [0, 1, 70],
            "simulated": False,
            "reserved_mb": 480,
            "compute_capability": "9.0",
            "numa_node": 1,
            "parent_uuid": None,
        },
        {
            "device_id": "gpu_1",
            "index": 1,
            "uuid": "GPU-bbbb",
            "model": "NVIDIA Test B",
            "memory_mb": 24564,
            "cpu_affinity": [],  # not supported there: unknown, and no error
            "simulated": False,
            "reserved_mb": 0,
            "compute_capability": None,
            "numa_node": None,
            "parent_uuid": None,
        },
    ]
    assert reply["open"] == 0
    assert reply["log"] == ""


def test_affinity_names_only_cores_that_are_offered(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([_FIRST]), cores=64)

    assert reply["devices"][0]["cpu_affinity"] == [0, 1]


@pytest.mark.parametrize("spec", ["1", "gpu_1", "GPU-bbbb", "1,GPU-bbbb"])
def test_named_devices_are_the_only_ones(fake_nvml: FakeNvml, spec: str) -> None:
    reply = _discover(fake_nvml.environ([_FIRST, _SECOND]), spec)

    assert [device["device_id"] for device in reply["devices"]] == ["gpu_1"]


def test_named_devices_come_in_the_order_of_their_indexes(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([_FIRST, _SECOND]), "GPU-bbbb, 0")

    assert [device["index"] for device in reply["devices"]] == [0, 1]


def test_a_device_that_is_not_there_is_named_with_those_that_are(fake_nvml: FakeNvml) -> None:
    kind, text = _discover(fake_nvml.environ([_FIRST, _SECOND]), "0,7")["error"]

    assert kind == "InventoryError"
    assert "'7'" in text and "0 (GPU-aaaa), 1 (GPU-bbbb)" in text


def test_none_does_not_ask_nvml(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([_FIRST], init_code=nvml.NO_PERMISSION), "none")

    assert reply["devices"] == []


def test_zero_gpus_are_none(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([]))

    assert reply["devices"] == []
    assert reply["open"] == 0


def test_a_driver_that_is_not_loaded_is_no_gpus(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([_FIRST], init_code=nvml.DRIVER_NOT_LOADED))

    assert reply["devices"] == []


def test_a_driver_that_is_not_loaded_is_an_error_for_named_devices(fake_nvml: FakeNvml) -> None:
    kind, text = _discover(fake_nvml.environ([_FIRST], init_code=nvml.DRIVER_NOT_LOADED), "0")["error"]

    assert kind == "InventoryError"
    assert "Driver Not Loaded" in text and "ALLOCATOR_DEVICES=sim:" in text


def test_no_library_is_no_gpus_and_an_error_for_named_devices(tmp_path: Path) -> None:
    # A broken library first on the loader's path, so that the test also holds on hosts with a driver.
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}

    assert _discover(environ)["devices"] == []
    kind, text = _discover(environ, "0")["error"]
    assert kind == "InventoryError"
    assert "NVML Shared Library Not Found" in text


@pytest.mark.parametrize(
    ("code", "cause"), [(nvml.VERSION_MISMATCH, "version mismatch"), (nvml.UNHEARD_OF, "scripted error 777")]
)
def test_another_failure_to_open_is_an_error_and_not_no_gpus(fake_nvml: FakeNvml, code: int, cause: str) -> None:
    kind, text = _discover(fake_nvml.environ([_FIRST], init_code=code))["error"]

    assert kind == "InventoryError"
    assert cause in text and "ALLOCATOR_DEVICES=none" in text


def test_a_failing_gpu_is_left_out_with_a_warning(fake_nvml: FakeNvml) -> None:
    lost = FakeGpu("GPU-lost", handle_code=nvml.GPU_IS_LOST)
    reply = _discover(fake_nvml.environ([lost, _SECOND]))

    assert [device["device_id"] for device in reply["devices"]] == ["gpu_1"]
    assert "GPU 0 is left out: GPU is lost" in reply["log"]
    assert reply["open"] == 0


def test_failing_memory_is_an_error_where_the_device_was_named(fake_nvml: FakeNvml) -> None:
    mute = FakeGpu("GPU-mute", memory_code=nvml.NOT_SUPPORTED)
    kind, text = _discover(fake_nvml.environ([mute, _SECOND]), "0")["error"]

    assert kind == "InventoryError"
    assert "GPU 0: its driver does not report its memory" in text


def test_memory_is_never_zero_for_a_gpu_that_does_not_report_it(fake_nvml: FakeNvml) -> None:
    mute = FakeGpu("GPU-mute", memory_code=nvml.NOT_SUPPORTED)
    kind, text = _discover(fake_nvml.environ([mute]))["error"]

    assert kind == "InventoryError"
    assert "no GPU of this host can be read" in text


def test_a_module_that_only_has_the_name_is_distrusted(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("__version__ = '0'\n")
    environ = {**fake_nvml.environ([_FIRST]), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    kind, text = _discover(environ)["error"]

    assert kind == "InventoryError"
    assert str(tmp_path) in text and "nvidia-ml-py" in text


def test_a_binding_that_returns_bytes_is_understood(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    real = subprocess.check_output([sys.executable, "-c", "import pynvml; print(pynvml.__file__)"], text=True).strip()
    older = (
        f"exec(compile(open({real!r}).read(), {real!r}, 'exec'))\n"
        "_uuid, _name = nvmlDeviceGetUUID, nvmlDeviceGetName\n"
        "def nvmlDeviceGetUUID(handle): return _uuid(handle).encode()\n"
        "def nvmlDeviceGetName(handle): return _name(handle).encode()\n"
    )
    (tmp_path / "pynvml.py").write_text(older)
    environ = {**fake_nvml.environ([_FIRST]), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    (device,) = _discover(environ)["devices"]

    assert (device["uuid"], device["model"]) == ("GPU-aaaa", "NVIDIA Test A")


# --- MIG

_SLICES = (
    FakeSlice("MIG-1111", "NVIDIA Test A MIG 1g.10gb", 9728, number=0, instance=7, reserved_mb=28),
    FakeSlice("MIG-3333", "NVIDIA Test A MIG 3g.40gb", 40192, number=2, instance=2, processes=((77, 5000),)),
)
_SLICED = replace(_FIRST, slices=_SLICES, temperature=55, milliwatts=200_000, ecc=0)


def test_slices_stand_for_a_gpu_with_mig_on(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ([_SLICED, _SECOND]), cores=128)

    told = [
        (d["device_id"], d["index"], d["uuid"], d["model"], d["memory_mb"], d["parent_uuid"]) for d in reply["devices"]
    ]
    assert told == [
        ("gpu_0_mig_0", 0, "MIG-1111", "NVIDIA Test A MIG 1g.10gb", 9700, "GPU-aaaa"),
        ("gpu_0_mig_2", 0, "MIG-3333", "NVIDIA Test A MIG 3g.40gb", 40192, "GPU-aaaa"),
        ("gpu_1", 1, "GPU-bbbb", "NVIDIA Test B", 24564, None),
    ]
    # They sit where their GPU sits.
    assert [(d["cpu_affinity"], d["numa_node"], d["compute_capability"]) for d in reply["devices"][:2]] == [
        ([0, 1, 70], 1, "9.0")
    ] * 2
    assert reply["links"] == {}
    assert (reply["open"], reply["log"]) == (0, "")


@pytest.mark.parametrize("spec", ["0:2", "gpu_0_mig_2", "MIG-3333"])
def test_a_slice_is_found_by_every_name_it_has(fake_nvml: FakeNvml, spec: str) -> None:
    reply = _discover(fake_nvml.environ([_SLICED, _SECOND]), spec)

    assert [device["uuid"] for device in reply["devices"]] == ["MIG-3333"]


def test_a_gpu_with_mig_on_is_not_offered_itself(fake_nvml: FakeNvml) -> None:
    _, text = _discover(fake_nvml.environ([_SLICED, _SECOND]), "0")["error"]

    assert "There: 0:0 (MIG-1111), 0:2 (MIG-3333), 1 (GPU-bbbb)" in text


# --- where GPUs sit

_FOUR = [FakeGpu(f"GPU-{i}", bus=f"00000000:{i}B:00.0") for i in range(4)]
_NEAR = (
    ("GPU-0", "GPU-1", 50, True),
    ("GPU-0", "GPU-2", 20, False),
    ("GPU-0", "GPU-3", 30, False),
    ("GPU-1", "GPU-2", 40, False),
    ("GPU-1", "GPU-3", 50, False),
    ("GPU-2", "GPU-3", 10, False),
)
_LINKS = {
    "gpu_0 gpu_1": "NVLINK",
    "gpu_0 gpu_2": "SWITCH",
    "gpu_0 gpu_3": "BRIDGE",
    "gpu_1 gpu_2": "NUMA",
    "gpu_1 gpu_3": "OTHER",
    "gpu_2 gpu_3": "SWITCH",
}


@pytest.mark.parametrize("pairs_code", [0, nvml.NOT_SUPPORTED])
def test_how_near_gpus_are(fake_nvml: FakeNvml, pairs_code: int) -> None:
    """Also by a driver that cannot be asked for the NVLink between two: by the address at its other end then."""
    reply = _discover(fake_nvml.environ(_FOUR, driver=FakeDriver(links=_NEAR, pairs_code=pairs_code)))

    assert reply["links"] == _LINKS
    assert reply["open"] == 0


def test_links_are_told_of_the_chosen_gpus(fake_nvml: FakeNvml) -> None:
    reply = _discover(fake_nvml.environ(_FOUR, driver=FakeDriver(links=_NEAR)), "1,2")

    assert reply["links"] == {"gpu_1 gpu_2": "NUMA"}


_KERNEL = """
import sys
from pathlib import Path
from celery_allocator.inventory import nvml
from celery_allocator.inventory.nvml import topology
topology.SYS = Path(sys.argv[1])
print([(device.numa_node, device.cpu_affinity) for device in nvml.all_devices()])
"""


def test_cores_of_the_numa_node_where_the_driver_tells_none(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    for folder, name, text in (
        ("bus/pci/devices/0000:3b:00.0", "numa_node", "1\n"),
        ("bus/pci/devices/0000:5e:00.0", "numa_node", "-1\n"),  # as in a virtual machine
        ("devices/system/node/node1", "cpulist", "2-3,6\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(text)
    gpus = [
        FakeGpu("GPU-0", bus="00000000:3B:00.0", affinity_code=nvml.NOT_SUPPORTED),
        FakeGpu("GPU-1", bus="00000000:5E:00.0", affinity_code=nvml.NOT_SUPPORTED, numa=1),
        FakeGpu("GPU-2", bus="00000000:5E:00.0", affinity_code=nvml.NOT_SUPPORTED),
        FakeGpu("GPU-3", bus="00000000:3B:00.0", cores=(9,)),  # what the driver tells comes first
    ]
    command = [sys.executable, "-c", _KERNEL, str(tmp_path)]
    told = subprocess.check_output(command, env=fake_nvml.environ(gpus), text=True, timeout=60)
    assert told.strip() == "[(1, (2, 3, 6)), (1, (2, 3, 6)), (None, ()), (1, (9,))]"


# --- what is in use

_READ_USE = """
import json, sys
from dataclasses import asdict
from celery_allocator.errors import AllocatorError
from celery_allocator.inventory import read_use
try:
    print(json.dumps(asdict(read_use(sys.argv[1]))))
except AllocatorError as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def _use(environ: Mapping[str, str], uuid: str) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", _READ_USE, uuid],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(run.stdout)


def test_what_a_gpu_is_used_for_now(fake_nvml: FakeNvml) -> None:
    busy = FakeGpu(
        "GPU-bbbb", used_mb=9000, utilization=75, temperature=61, milliwatts=250500, processes=((11, 4000), (12, None))
    )
    environ = fake_nvml.environ([_FIRST, busy])
    assert _use(environ, "GPU-bbbb") == {
        "used_mb": 9000,
        "processes": {"11": 4000, "12": None},
        "utilization": 0.75,
        "temperature_c": 61,
        "power_w": 250.5,
    }
    assert _use(environ, "GPU-aaaa")["processes"] == {}


def test_what_is_not_supported_is_none_and_not_zero(fake_nvml: FakeNvml) -> None:
    environ = fake_nvml.environ([FakeGpu("GPU-a", used_mb=7, now_code=nvml.NOT_SUPPORTED)])
    assert _use(environ, "GPU-a") == {
        "used_mb": 7, "processes": None, "utilization": None, "temperature_c": None, "power_w": None,
    }  # fmt: skip


def test_a_gpu_that_is_lost_says_so(fake_nvml: FakeNvml) -> None:
    environ = fake_nvml.environ([FakeGpu("GPU-a", handle_code=nvml.GPU_IS_LOST)])
    assert _use(environ, "GPU-a").startswith("GpuLostError: NVML cannot read this host's GPUs: ")
    assert _use({**os.environ}, "GPU-a").startswith("InventoryError: the GPU GPU-a cannot be read: ")


def test_of_a_slice_its_own_use_is_told_and_the_boards_temperature(fake_nvml: FakeNvml) -> None:
    """The driver tells a slice's memory and processes, and not what is of the whole board: that is unknown, never 0."""
    assert _use(fake_nvml.environ([_SLICED]), "MIG-3333") == {
        "used_mb": 5000, "processes": {"77": 5000}, "utilization": None, "temperature_c": 55, "power_w": None,
    }  # fmt: skip


# --- the command


def test_the_command_shows_what_the_driver_tells(fake_nvml: FakeNvml) -> None:
    worn = replace(_FIRST, ecc=2, rows=(True, False), recovery=1)
    environ = fake_nvml.environ([worn, FakeGpu("GPU-cccc", "Mute", ecc=0)]) | {"ALLOCATOR_CPU_CORES": "128"}
    command = [sys.executable, "-m", "celery_allocator", "devices"]
    plain = subprocess.check_output(command, env=environ, text=True, timeout=60)
    told = json.loads(subprocess.check_output([*command, "--json"], env=environ, text=True, timeout=60))

    assert "81079      480  9.0         1  0-1,70" in plain
    assert "asks for: GPU reset, memory remapped after the next reset, 2 uncorrectable memory errors" in plain
    assert [device["health"]["ecc_uncorrected"] for device in told["devices"]] == [2, 0]
    assert told["devices"][1]["health"]["recovery"] is None
    assert told["links"] == [{"devices": ["gpu_0", "gpu_1"], "link": "other"}]
