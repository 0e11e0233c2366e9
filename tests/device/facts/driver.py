"""What the driver answers, query by query, by the binding that the inventory uses."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from celery_allocator.inventory import nvml, read_use


def plain(value: Any) -> Any:
    """Structures of the binding as plain data."""
    if isinstance(value, (ctypes.Structure, ctypes.Union)):
        return {field[0]: plain(getattr(value, field[0])) for field in value._fields_}
    if isinstance(value, ctypes.Array):
        return [plain(item) for item in value]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def attempt(ask: Callable[..., Any], *args: Any) -> Any:
    """The answer, or the error's name."""
    try:
        return plain(ask(*args))
    except Exception as error:  # noqa: BLE001  # the error is the fact
        return f"{type(error).__name__}: {error}"


#: Queries that take the device alone.
_QUERIES = (
    "Name", "UUID", "MinorNumber", "Brand", "Architecture", "CudaComputeCapability", "MemoryInfo", "BAR1MemoryInfo",
    "PersistenceMode", "ComputeMode", "EccMode", "RetiredPagesPendingStatus", "RemappedRows", "MigMode",
    "MaxMigDeviceCount", "NumaNodeId", "UtilizationRates", "EncoderUtilization", "PowerUsage", "EnforcedPowerLimit",
    "TotalEnergyConsumption", "PerformanceState", "CurrentClocksEventReasons", "AccountingMode", "AccountingPids",
    "ComputeRunningProcesses", "GraphicsRunningProcesses", "MPSComputeRunningProcesses", "SupportedEventTypes",
    "VirtualizationMode", "GspFirmwareMode", "PowerManagementMode", "BoardPartNumber", "VbiosVersion",
)  # fmt: skip


def queries() -> dict[str, Any]:
    """Every query that the inventory makes or may want to make, on the first device."""
    begun = time.perf_counter()
    pynvml.nvmlInit()
    told: dict[str, Any] = {"open_s": round(time.perf_counter() - begun, 4)}
    for name in ("DriverVersion", "NVMLVersion", "CudaDriverVersion", "ConfComputeState"):
        told[f"System{name}"] = attempt(getattr(pynvml, f"nvmlSystemGet{name}"))
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    for name in _QUERIES:
        ask = getattr(pynvml, f"nvmlDeviceGet{name}", None)
        told[name] = attempt(ask, device) if ask else "not in the binding"
    further: dict[str, tuple[str, tuple[Any, ...]]] = {
        "MemoryInfo v2": ("MemoryInfo", (pynvml.nvmlMemory_v2,)),
        "Temperature": ("Temperature", (pynvml.NVML_TEMPERATURE_GPU,)),
        "CpuAffinity": ("CpuAffinity", (2,)),
        "MemoryAffinity node": ("MemoryAffinity", (2, pynvml.NVML_AFFINITY_SCOPE_NODE)),
        "CpuAffinityWithinScope socket": ("CpuAffinityWithinScope", (2, pynvml.NVML_AFFINITY_SCOPE_SOCKET)),
        "TotalEccErrors volatile": (
            "TotalEccErrors",
            (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
        ),
        "TopologyNearestGpus system": ("TopologyNearestGpus", (pynvml.NVML_TOPOLOGY_SYSTEM,)),
        "ProcessUtilization": ("ProcessUtilization", (0,)),
        "NvLinkState 0": ("NvLinkState", (0,)),
        "NvLinkState 17": ("NvLinkState", (17,)),
        "MigDeviceHandleByIndex 0": ("MigDeviceHandleByIndex", (0,)),
        "recovery action": ("FieldValues", ([pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION],)),
    }
    for name, (ask, args) in further.items():
        told[name] = attempt(getattr(pynvml, f"nvmlDeviceGet{ask}"), device, *args)
    told["process queries in the library"] = [
        name
        for name in (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetComputeRunningProcesses_v2",
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetRunningProcessDetailList",
            "nvmlDeviceGetProcessesUtilizationInfo",
        )
        if hasattr(ctypes.CDLL("libnvidia-ml.so.1"), name)
    ]
    pynvml.nvmlShutdown()
    return told


def cost() -> dict[str, Any]:
    """Seconds that our own calls take: each opens and closes the library."""
    told = {}
    device = nvml.all_devices()[0]
    watch = nvml.GpuWatch(device.uuid)
    for name, call in (
        ("all_devices", nvml.all_devices),
        ("read_use", lambda: read_use(device.uuid)),
        ("GpuWatch.look", watch.look),
    ):
        took = []
        for _ in range(20):
            begun = time.perf_counter()
            call()
            took.append(time.perf_counter() - begun)
        told[name] = {"first": round(took[0], 4), "median": round(sorted(took)[10], 4), "most": round(max(took), 4)}
    watch.close()
    return told


def place() -> dict[str, Any]:
    """Where this process and the GPU are: namespaces, the bus, device files."""
    pynvml.nvmlInit()
    bus = plain(pynvml.nvmlDeviceGetPciInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).busId).lower()
    slot = Path("/sys/bus/pci/devices") / f"{int(bus.split(':')[0], 16):04x}:{bus.split(':', 1)[1]}"
    return {
        "bus": bus,
        **{name: attempt((slot / name).read_text) for name in ("numa_node", "local_cpulist")},
        "nodes": sorted(path.name for path in Path("/sys/devices/system/node").glob("node*")),
        "cores": sorted(os.sched_getaffinity(0)),
        "first process": attempt(Path("/proc/1/comm").read_text),
        "namespace of pids": attempt(os.readlink, "/proc/self/ns/pid"),
        "device files": sorted(path.name for path in Path("/dev").glob("nvidia*")),
        "kernel": os.uname().release,
        "driver in proc": attempt(Path("/proc/driver/nvidia/version").read_text),
    }


SECTIONS = {"queries": queries, "cost": cost, "place": place}
