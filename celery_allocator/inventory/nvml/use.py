"""What is in use of a GPU now, by NVML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_allocator.errors import InventoryError
from celery_allocator.inventory.nvml.session import (
    MB,
    StaysOpen,
    board_of,
    handle_of,
    is_slice,
    memory,
    nvml,
    reading,
    supported,
)


@dataclass(frozen=True)
class GpuUse:
    """What the driver says of one GPU or MIG slice now. ``None``: it does not support that.

    ``used_mb``: memory in use; what the driver keeps for itself counts only with drivers that do not tell it apart.
    ``processes``: GPU memory in MB by process id, as the driver counts ids (in some containers, those of the host);
    ``None`` for a process whose memory it does not tell.
    ``utilization``: share of the last sampling period in which a kernel ran, 0 to 1.
    ``temperature_c``: of a slice, that of its GPU.
    """

    used_mb: int | None
    processes: Mapping[int, int | None] | None
    utilization: float | None
    temperature_c: int | None
    power_w: float | None


def read_use(uuid: str) -> GpuUse:
    """What is in use of the GPU or MIG slice with that UUID now.

    Raises :class:`InventoryError` if the driver cannot reach it, :class:`GpuLostError` if it fell off the bus.
    """
    with reading(uuid), nvml() as api:
        handle = handle_of(api, uuid)
        board = _of_board(api, uuid)
        sensor = board_of(api, handle, uuid)
        now = memory(api, handle)
        rates = supported(api, api.nvmlDeviceGetUtilizationRates, handle, also=board)
        power = supported(api, api.nvmlDeviceGetPowerUsage, handle, also=board)
        return GpuUse(
            used_mb=None if now is None else int(now.used) // MB,
            processes=_processes(api, handle, board),
            utilization=None if rates is None else int(rates.gpu) / 100,
            temperature_c=supported(api, api.nvmlDeviceGetTemperature, sensor, api.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else int(power) / 1000,
        )


class GpuProcesses(StaysOpen):
    """Which processes use a GPU, asked again and again. Thread-safe.

    NVML stays open in between: opening it takes longer than all that is asked.
    """

    def of(self, uuid: str) -> Mapping[int, int | None] | None:
        """As :attr:`GpuUse.processes` of the GPU or MIG slice with that UUID now. Raises as :func:`read_use`."""
        was_open = self._api is not None
        with reading(uuid):
            try:
                return self._ask(uuid)
            except InventoryError:
                self.close()
                if not was_open:
                    raise
            # The driver may have been restarted: what was opened before is of no use.
            return self._ask(uuid)

    def _ask(self, uuid: str) -> Mapping[int, int | None] | None:
        with self._kept_open() as api:
            if self._api is None:
                self._begin(api)
        with nvml() as api:  # that is counted, as long as it is open
            return _processes(api, handle_of(api, uuid), _of_board(api, uuid))


def _of_board(api: Any, uuid: str) -> tuple[int, ...]:
    """What is of the whole board is not a slice's, and drivers differ in how they say so."""
    return (api.NVML_ERROR_INVALID_ARGUMENT,) if is_slice(uuid) else ()


def _processes(api: Any, handle: Any, board: tuple[int, ...]) -> dict[int, int | None] | None:
    """Compute and graphics processes; one that is both has the same memory in both lists."""
    lists = [
        supported(api, api.nvmlDeviceGetComputeRunningProcesses, handle),
        supported(api, api.nvmlDeviceGetGraphicsRunningProcesses, handle, also=board),
    ]
    if lists[0] is None:
        return None
    return {
        int(process.pid): None if process.usedGpuMemory is None else int(process.usedGpuMemory) // MB
        for listed in lists
        for process in listed or ()
    }
